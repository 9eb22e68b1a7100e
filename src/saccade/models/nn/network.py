"""What every backbone has (``Network``), and what those with attention have in addition (``AttentiveNetwork``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.nn.attention import HeadFusion, attention_rows, check_rows, rollout
from saccade.models.nn.positions import Grid
from saccade.models.settings import Capabilities, Settings, build_arguments

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, [B H N Dk] each."""


class Network(nn.Module):
    """Abstract: pixels [B C *size] to ``Features``.

    Parameters
    ----------
    settings : Settings
        What makes this network.
    dim : int
        Width D of the features.
    stride_px : int
        Side in pixels of the part of the image that one token stands for.
    capabilities : Capabilities, optional
        Where they differ from those of ``settings``.
    arguments : mapping, optional
        Arguments of ``build`` where they differ from those of ``settings``.
    """

    settings: Settings

    def __init__(
        self,
        settings: Settings,
        *,
        dim: int,
        stride_px: int,
        capabilities: Capabilities | None = None,
        arguments: Mapping[str, object] | None = None,
    ):
        super().__init__()
        self.settings = settings
        self.name, self.channels = settings.name, settings.channels
        self.dim, self.stride_px = dim, stride_px
        self.capabilities = capabilities or settings.capabilities
        self.checkpointing = False
        self._arguments = dict(arguments or build_arguments(settings))

    def config(self) -> dict[str, object]:
        """Arguments of ``backbones.build.build`` that make this network again."""
        return dict(self._arguments)


class AttentiveNetwork(Network, ABC):
    """Abstract: a network whose attention can be read, row by row. Token 0 is the class token, if there is one.

    Parameters
    ----------
    depth, heads : int
        Layers, and attention heads of each.
    prefix : int
        Class and register tokens, which come before those of the patches.
    """

    def __init__(self, settings: Settings, *, dim: int, stride_px: int, depth: int, heads: int, prefix: int):
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
