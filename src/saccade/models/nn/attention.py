"""Scaled dot-product attention, with one door: ``attend``.

Vaswani et al. 2017 (arXiv:1706.03762), equation 1. The fused path is torch's; the explicit path is the
equation. Both give the same numbers. Weights are never kept: ``attention_rows`` computes the rows asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saccade.errors import ModelError

# Forward and backward on two CPU cores, ms, fused / explicit, 3 heads of 64, about 2000 tokens a batch:
#   bf16: 17 tokens 17.1 / 2.6   65: 14.9 / 4.3   257: 14.2 / 4.9   577: 25.4 / 9.9   1025: 20.3 / 11.1
#   fp32: 17 tokens  3.6 / 3.2   197: 9.0 / 9.0   257: 10.2 / 10.9  577: 20.7 / 24.2  1025: 23.9 / 27.3
# Forward alone: explicit wins in bf16 (1.0 / 0.6 to 6.2 / 3.5), fused in fp32 from 65 tokens on.
# Above 512 tokens the N x N weights that the explicit path keeps for the backward pass cost too much memory.
EXPLICIT_TOKENS_BF16 = 512
EXPLICIT_TOKENS_FP32 = 192


def attend(
    query: Float[Tensor, "B H N Dk"],
    key: Float[Tensor, "B H M Dk"],
    value: Float[Tensor, "B H M Dv"],
    *,
    explicit: bool | None = None,
    mask: Float[Tensor, "*#B N M"] | Bool[Tensor, "*#B N M"] | Bool[Tensor, "*#B 1 M"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(Q K^T / sqrt(Dk)) V.

    explicit  True: the equation as written; False: torch's fused kernel; None: the faster of the two here
    mask      boolean, True where a key may be seen, or a number added to the score before the softmax
    Raises ModelError when the widths or lengths do not fit.
    """
    _check_shapes(query, key, value)
    if explicit is None:
        explicit = _explicit_is_faster(query, key)
    if not explicit:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return torch.softmax(_scores(query, key, mask), dim=-1).to(value.dtype) @ value


def attention_rows(
    query: Float[Tensor, "B H N Dk"],
    key: Float[Tensor, "B H M Dk"],
    rows: Int[Tensor, "R"],
    mask: Bool[Tensor, "*#B R M"] | Bool[Tensor, "*#B 1 M"] | Float[Tensor, "*#B R M"] | None = None,
) -> Float[Tensor, "B H R M"]:
    """The attention weights of a few queries, each row summing to 1; memory is O(R M), never O(N M).

    mask   True where these queries may see a key, or a number added to the score before the softmax
    Raises ModelError when query and key have different widths.
    """
    _check_shapes(query, key, key)
    dtype = torch.promote_types(query.dtype, torch.float32)
    chosen = query.index_select(2, rows.to(query.device)).to(dtype)
    return torch.softmax(_scores(chosen, key.to(dtype), mask), dim=-1)


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


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
