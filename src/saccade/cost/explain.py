"""The largest part of a price in words: what it is, and what it grows with. No torch."""

from __future__ import annotations

from saccade.cost.recorder import ATTENTION, GRADIENTS, IN_FLIGHT, LOSS, OPTIMIZER, RECOMPUTED
from saccade.cost.step import FRAGMENTATION, FROZEN, IMAGES, VIEWS, WEIGHTS, Price, Workload
from saccade.cost.system_memory import format_bytes

PARAMETERS = "grows with the network, not with the images"
GROWS = {
    ATTENTION: "one number for every pair of tokens, in every head and layer",
    LOSS: "head and loss; grows with the batch and the number of outputs",
    RECOMPUTED: "one block at a time; grows with the batch and the tokens",
    VIEWS: "the crops; grows with their number and size",
    IMAGES: "grows with the batch and the size of the images",
    WEIGHTS: PARAMETERS,
    FROZEN: PARAMETERS,
    OPTIMIZER: f"AdamW stores two numbers per weight; {PARAMETERS}",
    GRADIENTS: f"one number per weight; {PARAMETERS}",
    IN_FLIGHT: "gradients between two layers; grows with the batch and the widest layer",
    FRAGMENTATION: "free memory between tensors that no other tensor fits into",
}
ACTIVATIONS = "stored for the backward pass; grows with the batch and the tokens or pixels"


def sentence(cost: Price, load: Workload) -> str:
    """The dominating label: its bytes, what it grows with, and for attention the product of its factors."""
    label = cost.dominating
    text = f"{label}, {format_bytes(cost.memory.get(label, 0))} ({GROWS.get(label, ACTIVATIONS)})"
    if label == ATTENTION and cost.attention:
        side, item = load.global_views[1], 2 if load.bf16 else 4
        heads = getattr(load.network, "heads", 1)
        tokens = round((cost.attention / (load.batch * max(1, load.slices) * heads * item)) ** 0.5)
        images = load.batch * max(1, load.slices)
        text += (
            f"; one layer on views of {side} px: {images} images x {heads} heads x {tokens:,}^2 tokens x {item} bytes"
            f" = {cost.attention / 2**30:,.2f} GiB"
        )
    return text
