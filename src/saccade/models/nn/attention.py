"""Scaled dot-product attention (``attend``), its weights (``attention_rows``), their product over layers (``rollout``).

Vaswani et al. 2017 (arXiv:1706.03762), equation 1. The fused path is torch's, the explicit path is the equation; both
give the same result. Weights are never stored: ``attention_rows`` computes the rows asked for. A network whose
attention can be read is an ``AttentiveNetwork``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeGuard, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saccade.base.contracts import Grid
from saccade.errors import ModelError, UsageError, unknown
from saccade.models.nn.network import Network
from saccade.models.settings import BackboneSettings

# Forward and backward on two CPU cores, ms, fused / explicit, 3 heads of 64, about 2000 tokens a batch:
#   bf16: 17 tokens 17.1 / 2.6   65: 14.9 / 4.3   257: 14.2 / 4.9   577: 25.4 / 9.9   1025: 20.3 / 11.1
#   fp32: 17 tokens  3.6 / 3.2   197: 9.0 / 9.0   257: 10.2 / 10.9  577: 20.7 / 24.2  1025: 23.9 / 27.3
# Forward alone: explicit wins in bf16 (1.0 / 0.6 to 6.2 / 3.5), fused in fp32 from 65 tokens on.
# Above 512 tokens the N x N weights that the explicit path keeps for the backward pass cost too much memory.
EXPLICIT_TOKENS_BF16 = 512
EXPLICIT_TOKENS_FP32 = 192

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, [B H N Dk] each."""
HeadFusion = Literal["mean", "max", "min"]
CHUNK_ELEMENTS = 2**24  # attention weights that rollout holds at a time: 64 MiB in float32


_path: ContextVar[bool | None] = ContextVar("attention_path", default=None)


@contextmanager
def attention_path(explicit: bool | None) -> Iterator[None]:
    """Inside, ``attend`` takes the explicit path (True), the fused one (False), or the faster of the two (None).

    The results are equal; what they cost is not.
    """
    token = _path.set(explicit)
    try:
        yield
    finally:
        _path.reset(token)


def attend(
    query: Float[Tensor, "B H N Dk"],
    key: Float[Tensor, "B H M Dk"],
    value: Float[Tensor, "B H M Dv"],
    *,
    explicit: bool | None = None,
    mask: Float[Tensor, "*#B N M"] | Bool[Tensor, "*#B N M"] | Bool[Tensor, "*#B 1 M"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Compute softmax(Q K^T / sqrt(Dk)) V.

    Parameters
    ----------
    query, key, value : Tensor
        [B H N Dk], [B H M Dk] and [B H M Dv].
    explicit : bool, optional
        True: the equation as written; False: torch's fused kernel; None: the faster one on this device.
    mask : Tensor, optional
        Boolean, True where a key is visible, or a number added to the score before the softmax.

    Returns
    -------
    Tensor
        [B H N Dv].

    Raises
    ------
    ModelError
        Widths or lengths do not match.

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762, equation 1.

    Examples
    --------
    >>> query, key, value = torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 5)
    >>> attend(query, key, value).shape
    torch.Size([1, 1, 2, 5])
    """
    _check_shapes(query, key, value)
    if explicit is None:
        explicit = _path.get()
    if explicit is None:
        explicit = _explicit_is_faster(query, key)
    if not explicit:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return torch.softmax(attention_scores(query, key, mask), dim=-1).to(value.dtype) @ value


def attention_rows(
    query: Float[Tensor, "B H N Dk"],
    key: Float[Tensor, "B H M Dk"],
    rows: Int[Tensor, "R"],
    mask: Bool[Tensor, "*#B R M"] | Bool[Tensor, "*#B 1 M"] | Float[Tensor, "*#B R M"] | None = None,
) -> Float[Tensor, "B H R M"]:
    """Compute the attention weights of some queries; memory is O(R M), never O(N M).

    Parameters
    ----------
    query, key : Tensor
        [B H N Dk] and [B H M Dk].
    rows : Tensor
        [R], the queries to compute.
    mask : Tensor, optional
        Boolean, True where these queries see a key, or a number added to the score before the softmax.

    Returns
    -------
    Tensor
        [B H R M], float32 or wider; each row sums to 1.

    Raises
    ------
    ModelError
        Queries and keys have different widths.

    Examples
    --------
    >>> query = key = torch.zeros(1, 1, 4, 8)
    >>> attention_rows(query, key, torch.tensor([2]))
    tensor([[[[0.2500, 0.2500, 0.2500, 0.2500]]]])
    """
    _check_shapes(query, key, key)
    dtype = torch.promote_types(query.dtype, torch.float32)
    chosen = query.index_select(2, rows.to(query.device)).to(dtype)
    return torch.softmax(attention_scores(chosen, key.to(dtype), mask), dim=-1)


def rollout(
    queries: Sequence[Float[Tensor, "B H N Dk"]],
    keys: Sequence[Float[Tensor, "B H N Dk"]],
    rows: Int[Tensor, "R"],
    *,
    head_fusion: HeadFusion = "mean",
    mask: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Float[Tensor, "B R N"]:
    """Compute rows of attention rollout: of the product over all layers of (A + I) / 2, with A fused over heads.

    Computed from the last layer to the first as vector times matrix, in chunks of matrix rows, so that no N x N matrix
    is held. Rows of fused heads are scaled to sum 1.

    Parameters
    ----------
    queries, keys : sequence of Tensor
        [B H N Dk] of every layer, first to last.
    rows : Tensor
        [R], tokens of the last layer.
    head_fusion : {"mean", "max", "min"}
        How the heads of a layer are combined.
    mask : callable, optional
        Takes a layer and rows, returns the mask of ``attention_rows``.

    Returns
    -------
    Tensor
        [B R N], what each of these tokens takes from every input token; each row sums to 1.

    Raises
    ------
    UsageError
        The fusion is unknown, or a token does not exist.

    References
    ----------
    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928.

    Examples
    --------
    >>> layer = torch.zeros(1, 1, 2, 8)
    >>> rollout([layer], [layer], torch.tensor([0]))
    tensor([[[0.7500, 0.2500]]])
    """
    if head_fusion not in get_args(HeadFusion):
        raise unknown("head fusion", str(head_fusion), get_args(HeadFusion))
    batch, heads, count, _ = queries[0].shape
    check_rows(rows, count)
    dtype = torch.promote_types(queries[0].dtype, torch.float32)
    weights = torch.zeros(batch, len(rows), count, device=queries[0].device, dtype=dtype)
    weights[:, torch.arange(len(rows)), rows] = 1.0
    size = max(1, CHUNK_ELEMENTS // (batch * heads * count))
    for layer in reversed(range(len(queries))):
        product = torch.zeros_like(weights)
        for chunk in torch.arange(count, device=weights.device).split(size):
            visible = None if mask is None else mask(layer, chunk)
            attention = attention_rows(queries[layer], keys[layer], chunk, visible)
            product += weights[:, :, chunk] @ _fused(attention, head_fusion)
        weights = 0.5 * weights + 0.5 * product
    return weights


def _fused(weights: Float[Tensor, "B H R N"], head_fusion: HeadFusion) -> Float[Tensor, "B R N"]:
    if head_fusion == "mean":
        return weights.mean(dim=1)
    fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    return fused / fused.sum(dim=-1, keepdim=True)


def check_rows(rows: Int[Tensor, "R"], count: int) -> None:
    """Raise UsageError unless all ``rows`` are tokens of a network with ``count`` tokens."""
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= count):
        raise UsageError(
            "no such token",
            got=f"rows {int(rows.min())} to {int(rows.max())}",
            expected=f"0 to {count - 1}: class and register tokens first, then patches",
        )


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.shape[-1] != key.shape[-1]:
        raise ModelError(
            "queries and keys have different widths",
            got=f"query {tuple(query.shape)}, key {tuple(key.shape)}",
            expected="the same last dimension: their dot product is the score",
            hint="project both to one width; only the values may have another",
        )
    if key.shape[-2] != value.shape[-2]:
        raise ModelError(
            "keys and values have different lengths",
            got=f"key {tuple(key.shape)}, value {tuple(value.shape)}",
            expected="one value for each key",
            hint="take keys and values from the same tokens",
        )


def _explicit_is_faster(query: Tensor, key: Tensor) -> bool:
    if query.device.type != "cpu":
        return False
    if query.dtype == torch.bfloat16:
        return key.shape[-2] <= EXPLICIT_TOKENS_BF16
    return query.requires_grad and key.shape[-2] <= EXPLICIT_TOKENS_FP32


def attention_scores(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Q K^T / sqrt(Dk), [B H N M]; -inf where a boolean mask hides a key."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


class AttentiveNetwork(Network, ABC):
    """Abstract: a network whose attention can be read, row by row. Token 0 is the class token, if there is one.

    Parameters
    ----------
    depth, heads : int
        Layers, and attention heads of each.
    prefix : int
        Class and register tokens, which come before those of the patches.
    """

    def __init__(self, settings: BackboneSettings, *, dim: int, stride_px: int, depth: int, heads: int, prefix: int):
        super().__init__(settings, dim=dim, stride_px=stride_px)
        self.depth, self.heads, self.prefix = depth, heads, prefix

    @abstractmethod
    def projections(self, pixels: Tensor, layers: Sequence[int]) -> tuple[list[Heads], Grid]:
        """Queries, keys and values of some layers, in the order of the layers, and the grid of the patches.

        Memory is O(len(layers) N D); no attention weights are computed. Layers count from 0.
        """

    @abstractmethod
    def key_mask(self, pixels: Tensor, grid: Grid, layer: int, rows: Tensor) -> Tensor | None:
        """The keys that some queries of a layer see, True for visible; None for all.

        Broadcasts to [B H R N].
        """

    @abstractmethod
    def without_positions(self) -> AttentiveNetwork:
        """A copy with the same weights whose tokens have no positions. Only where ``capabilities.has_positions``."""

    def layer_index(self, layer: int) -> int:
        """The layer counted from 0; negative ``layer`` counts from the last. Raises UsageError."""
        if not -self.depth <= layer < self.depth:
            raise UsageError("no such layer", got=layer, expected=f"{-self.depth} to {self.depth - 1}")
        return layer % self.depth

    def attention(
        self, pixels: Float[Tensor, "B C *size"], *, layer: int = -1, rows: Int[Tensor, "R"]
    ) -> Float[Tensor, "B H R N"]:
        """Compute the attention weights of some queries in one layer. All layers run on their usual path.

        Parameters
        ----------
        pixels : Tensor
            [B C *size], normalised.
        layer : int
            From 0; negative counts from the last.
        rows : Tensor
            [R], tokens: class and register tokens first, then patches in row-major order.

        Returns
        -------
        Tensor
            [B H R N], each row summing to 1.

        Raises
        ------
        UsageError
            The layer or a token does not exist.
        """
        index = self.layer_index(layer)
        [(query, key, _)], grid = self.projections(pixels, [index])
        check_rows(rows, query.shape[2])
        return attention_rows(query, key, rows, self.key_mask(pixels, grid, index, rows.to(query.device)))

    def rollout(
        self, pixels: Float[Tensor, "B C *size"], row: int, *, head_fusion: HeadFusion = "mean"
    ) -> Float[Tensor, "B N"]:
        """Compute attention rollout for one token of the last layer (see ``nn.attention.rollout``)."""
        layers, grid = self.projections(pixels, range(self.depth))
        queries, keys = [query for query, _, _ in layers], [key for _, key, _ in layers]

        def mask(layer: int, rows: Tensor) -> Tensor | None:
            return self.key_mask(pixels, grid, layer, rows)

        return rollout(queries, keys, torch.tensor([row]), head_fusion=head_fusion, mask=mask)[:, 0]


def has_attention(network: nn.Module) -> TypeGuard[AttentiveNetwork]:
    """Whether attention rows can be read from a network."""
    return isinstance(network, Network) and network.capabilities.has_attention
