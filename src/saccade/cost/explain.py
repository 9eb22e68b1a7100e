"""The largest part of a price in words: what it is, and what it grows with. No torch."""

from __future__ import annotations

from saccade.cost.attention_ops import MATRICES, QKV, TABLES
from saccade.cost.autograd_tape import GRADIENTS, IN_FLIGHT, SCRATCH
from saccade.cost.method_steps import HEADS, VIEWS
from saccade.cost.resnet import MAPS
from saccade.cost.step_memory import GAPS, IMAGES, OPTIMISER, TEACHER, WEIGHTS, Price, Workload
from saccade.cost.system_memory import said
from saccade.cost.vit import MLP, PATCHES, PATH

GROWS = {
    MATRICES: "one number for every pair of tokens that is compared, in every head and layer",
    MLP: "four times the width for every token, kept in every layer; grows with the tokens",
    QKV: "three vectors a token, in every layer; grows with the tokens",
    PATH: "the width for every token, several times a layer; grows with the tokens",
    PATCHES: "the pixels, cut into patches; grows with the pixels",
    MAPS: "the maps of the convolutions, kept for the way back; grows with the pixels",
    HEADS: "head and loss; grows with the batch and the number of prototypes",
    VIEWS: "the crops themselves; grows with their number and pixels",
    IMAGES: "the decoded images of a batch",
    WEIGHTS: "grows with the network, not with the images",
    TEACHER: "a second network; grows with the network, not with the images",
    OPTIMISER: "AdamW's two numbers a weight; grows with the network, not with the images",
    GRADIENTS: "one number a weight; grows with the network, not with the images",
    IN_FLIGHT: "gradients on their way through the widest layer",
    SCRATCH: "copies that products and convolutions make and give back",
    GAPS: "memory that freed tensors left and no other fits into",
    TABLES: "which token sees which, for sparse attention; made once",
    "weights in bf16": "copies of the weights for products in bf16",
    "targets": "the pixels or features to be predicted",
}


def sentence(found: Price, load: Workload) -> str:
    """The dominating term: its name, its bytes, what it grows with, and for attention its own product."""
    name = found.dominating
    text = f"{name}, {said(found.memory[name])} ({GROWS.get(name, 'grows with the images')})"
    if name == MATRICES and found.attention:
        heads, side = getattr(load.network, "heads", 0), load.global_views[1]
        tokens = found.tokens[0] + 1
        text += (
            f"; one layer on views of {side} px: {load.batch} images x {heads} heads x {tokens:,}^2 tokens x "
            f"{2 if load.bf16 else 4} bytes = {found.attention / 2**30:,.2f} GiB"
        )
    return text
