"""Parts that several methods share: heads, the student-teacher pair, vectors of many views."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features, Progress, View
from saccade.base.schedules import cosine_schedule
from saccade.runtime import gather_with_gradient, world_size

HeadNorm = Literal["none", "batch", "layer"]


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the images of all processes: [B D] to [B D], the same on one process as on many."""

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.float()
            moments = torch.stack([x32.mean(dim=0), x32.square().mean(dim=0)])
            mean, square = gather_with_gradient(moments[None]).mean(dim=0)
            variance = (square - mean.square()).clamp_min(0)
            count = len(x) * world_size()
            with torch.no_grad():
                assert self.running_mean is not None and self.running_var is not None
                assert self.num_batches_tracked is not None and self.momentum is not None
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
            normalized: Tensor = (x32 - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normalized.to(x.dtype)


def mlp_head(widths: Sequence[int], norm: HeadNorm) -> nn.Sequential:
    """Linear layers of these widths, with a norm and GELU between them.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp_head([8, 16, 4], "batch")]
    ['Linear', 'BatchNorm', 'GELU', 'Linear']
    """
    norms = {"none": nn.Identity, "batch": BatchNorm, "layer": nn.LayerNorm}
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        if layers:
            layers += [norms[norm](inputs), nn.GELU()]
        layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """New layers inside get weights that depend on ``seed`` alone; the generator of the caller is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def width_of(network: nn.Module) -> int:
    """D, the width of a network's image vector."""
    return int(network.dim)  # type: ignore[arg-type]


@torch.no_grad()
def ema_update(teacher: Sequence[nn.Module], student: Sequence[nn.Module], momentum: float) -> None:
    """The teacher as a moving average of the student (He et al. 2020, MoCo): t = m t + (1 - m) s."""
    targets: list[Tensor] = [p for network in teacher for p in network.parameters()]
    sources = [p.detach() for network in student for p in network.parameters()]
    torch._foreach_lerp_(targets, sources, 1 - momentum)


class StudentTeacher:
    """Networks that learn and their moving averages, which begin as copies and get no gradient.

    It holds references only: the method registers the networks, so that they are in its ``state_dict`` under its names.

    Parameters
    ----------
    student, teacher
        Backbone first, then heads, in the same order.
    momentum, momentum_end
        Of the average at the start and at the end of the run, with a cosine between.
    """

    def __init__(
        self,
        student: Sequence[nn.Module],
        teacher: Sequence[nn.Module],
        *,
        momentum: float | None,
        momentum_end: float,
    ):
        assert momentum is not None
        self.student, self.teacher = tuple(student), tuple(teacher)
        self._momentum, self._momentum_end = momentum, momentum_end
        for copy, original in zip(self.teacher, self.student, strict=True):
            copy.load_state_dict(original.state_dict())
            copy.requires_grad_(False)

    def momentum(self, progress: Progress) -> float:
        return cosine_schedule(self._momentum, self._momentum_end, progress.fraction)

    def update(self, progress: Progress) -> None:
        """Move the teacher towards the student; once per optimizer step."""
        ema_update(self.teacher, self.student, self.momentum(progress))


def image_vectors(backbone: nn.Module, views: list[View]) -> Float[Tensor, "VB D"]:
    """Image vectors in the order of the views; consecutive views of equal size go through the network together."""
    vectors: list[Tensor] = []
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].pixels.shape != views[start].pixels.shape:
            features: Features = backbone(torch.cat([v.pixels for v in views[start:end]]))
            vectors.append(features.cls)
            start = end
    return torch.cat(vectors)


def feature_std(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """How far the directions of vectors spread: 1 in all directions alike, 0 when all are the same.

    Examples
    --------
    >>> round(float(feature_std(torch.ones(4, 3))), 3)
    0.0
    """
    directions = torch.nn.functional.normalize(vectors.detach().float(), dim=1)
    return (1 - directions.mean(dim=0).square().sum()).clamp_min(0).sqrt()
