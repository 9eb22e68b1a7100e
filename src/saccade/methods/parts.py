"""What several methods are made of: projections, teachers that follow, vectors of many views."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.contracts import Features, View


def projection(widths: Sequence[int], norm: str) -> nn.Sequential:
    """Linear layers of these widths, between them a norm (``none``, ``batch`` or ``layer``) and GELU."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        if layers:
            kind = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[norm]
            layers += [kind(inputs), nn.GELU()]
        layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def on_the_way(start: float, end: float, fraction: float) -> float:
    """Half a cosine from ``start`` to ``end``: the momentum of a teacher."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def follow(teacher: Sequence[nn.Module], student: Sequence[nn.Module], momentum: float) -> None:
    """The teacher as a moving average of the student (He et al. 2020, MoCo)."""
    pairs = [(a, b) for one, other in zip(teacher, student) for a, b in zip(one.parameters(), other.parameters())]
    targets, sources = zip(*pairs, strict=True)
    torch._foreach_lerp_(list(targets), [p.detach() for p in sources], 1 - momentum)


def image_vectors(backbone: nn.Module, views: list[View]) -> Float[Tensor, "VB D"]:
    """One call of the network for each run of views of equal size; image vectors in the order of the views."""
    found: list[Tensor] = []
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].pixels.shape != views[start].pixels.shape:
            features: Features = backbone(torch.cat([v.pixels for v in views[start:end]]))
            found.append(features.cls)
            start = end
    return torch.cat(found)


def spread(vectors: Float[Tensor, "N D"]) -> Tensor:
    """How far vectors of length 1 point apart: 1 in all directions alike, 0 when all are the same."""
    unit = torch.nn.functional.normalize(vectors.detach().float(), dim=1)
    return (1 - unit.mean(dim=0).square().sum()).clamp_min(0).sqrt()
