"""What is recorded of the attention of a text model: the inputs of torch's fused kernel, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class AttentionInputs:
    """Queries and keys of one layer as the fused kernel gets them, rotary positions applied.

    Parameters
    ----------
    query, key : Tensor
        [H N d]; keys are repeated where several heads share one.
    mask : Tensor or None
        Boolean (True: visible) or added to the score; broadcasts to [H N N].
    scale : float
        Factor of q·k, 1/sqrt(d) in most models.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float

    def mask_rows(self, rows: Tensor) -> Tensor | None:
        if self.mask is None:
            return None
        count = self.query.shape[1]
        return self.mask.expand(self.mask.shape[0], count, self.key.shape[1]).index_select(1, rows)


class AttentionRecorder(TorchFunctionMode):
    """Records the inputs of torch's fused attention while it is active, in this thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[AttentionInputs] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.layers.append(_inputs(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionInputs:
    """From the arguments of torch's ``scaled_dot_product_attention``, for a batch of one text."""
    heads, count, width = query.shape[-3:]
    if key.shape[-3] != heads:
        key = key.repeat_interleave(heads // key.shape[-3], dim=-3)
    if is_causal:
        attn_mask = torch.ones(count, key.shape[-2], dtype=torch.bool, device=query.device).tril()[None, None]
    mask = None if attn_mask is None else attn_mask.reshape(-1, *attn_mask.shape[-2:])
    return AttentionInputs(query[0], key[0], mask, width**-0.5 if scale is None else scale)


@dataclass(frozen=True)
class QueryKeyPair:
    """One query and one key, and the numbers that lead to their attention weight.

    Parameters
    ----------
    query, key, products : Tensor
        [d]; ``products`` is query times key element by element.
    scale : float
        Factor of the sum of the products, 1/sqrt(d) in most models.
    score : float
        The scaled sum, mask or position bias added.
    log_sum : float
        Logarithm of the sum of exp(score) over all keys: weight = exp(score - log_sum).
    weight : float
        The attention weight.
    visible : bool
        False where the model's mask hides the key.
    """

    query: Tensor
    key: Tensor
    products: Tensor
    scale: float
    score: float
    log_sum: float
    weight: float
    visible: bool


def visible_keys(mask: Tensor) -> Tensor:
    """True where a mask makes a key visible; models encode "hidden" as False, -inf or the lowest number."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
