"""What several methods are made of: projections, teachers that follow, vectors of many views."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features, View
from saccade.runtime import gather_with_gradient, world_size


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the images of all processes: [B D] to [B D], the same on one process as on many."""

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            own = torch.stack([wide.mean(dim=0), wide.square().mean(dim=0)])
            mean, square = gather_with_gradient(own[None]).mean(dim=0)
            variance = (square - mean.square()).clamp_min(0)
            count = len(x) * world_size()
            with torch.no_grad():
                assert self.running_mean is not None and self.running_var is not None
                assert self.num_batches_tracked is not None and self.momentum is not None
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
            found = (wide - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return found.to(x.dtype)


def projection(widths: Sequence[int], norm: str) -> nn.Sequential:
    """Linear layers of these widths, between them a norm (``none``, ``batch`` or ``layer``) and GELU."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        if layers:
            kind = {"none": nn.Identity, "batch": BatchNorm, "layer": nn.LayerNorm}[norm]
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
