"""Views agree, vectors stay normally distributed: no teacher and nothing to tune (LeJEPA).

After LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544): SIGReg, the Epps-Pulley test of normality on random
one-dimensional projections of the vectors, prevents collapse.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.diagnosis import SAME_VECTOR, Explanation, Line, Settings, lasting
from saccade.methods.heads_and_ema import HeadNorm, feature_std, image_vectors, mlp_head, seeded, width_of
from saccade.runtime import gather_with_gradient, torch_generator, world_size

KNOTS, T_MAX = 17, 5.0


@dataclass(frozen=True)
class LejepaConfig:
    """Settings of lejepa. None: decided from the data."""

    weight: float = 0.05
    """Weight of SIGReg in the loss; the rest is the weight of the invariance term."""
    slices: int = 1024
    """Random projections per step."""
    out_dim: int | None = None
    """Width of the vectors that are tested; default: 64, or 16 below 10,000 images."""
    hidden: int | None = None
    head_norm: HeadNorm = "batch"
    """Without batch norm a ViT learns far more slowly (docs/log.md)."""


def resolve_lejepa(config: LejepaConfig, facts: DatasetFacts) -> LejepaConfig:
    """Fill every None; UsageError for values out of range."""
    if not 0 <= config.weight <= 1:
        raise UsageError("lejepa.weight must be a fraction", got=config.weight, expected="0 to 1")
    for name in ("slices", "out_dim", "hidden"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"lejepa.{name} must be above 0", got=value)
    return dataclasses.replace(
        config,
        out_dim=config.out_dim or (64 if facts.images >= 10_000 else 16),
        hidden=config.hidden or (2048 if facts.images >= 100_000 else 512),
    )


def sigreg(
    vectors: Float[Tensor, "B D"],
    directions: Float[Tensor, "D S"],
    mean_over_all: Callable[[Tensor], Tensor],
    count: int,
) -> Float[Tensor, ""]:
    """SIGReg: mean Epps-Pulley statistic of random one-dimensional projections of the vectors, float32 (algorithm 1).

    ``count`` times the integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over t from -5 to 5 by the trapezoidal
    rule with 17 knots; phi is the empirical characteristic function.

    Parameters
    ----------
    directions
        S unit vectors.
    mean_over_all
        Takes the mean of a tensor over processes and passes gradients back.
    count
        Number of vectors on all processes.

    Examples
    --------
    >>> normal = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    >>> near, far = (sigreg(x, torch.ones(1, 1), lambda mean: mean, 4096) for x in (normal, normal + 1))
    >>> bool(near < 5 < far)
    True
    """
    t = torch.linspace(-T_MAX, T_MAX, KNOTS, device=vectors.device)
    angles = (vectors.float() @ directions)[..., None] * t
    real, imaginary = mean_over_all(torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)]))
    normal = torch.exp(-0.5 * t.square())
    error = ((real - normal).square() + imaginary.square()) * normal
    return count * torch.trapezoid(error, t, dim=-1).mean()


def agreement(vectors: Float[Tensor, "V B D"], global_count: int) -> Float[Tensor, ""]:
    """Mean squared distance of every view from the mean of the global views of its image."""
    vectors = vectors.float()
    return (vectors - vectors[:global_count].mean(dim=0)).square().mean()


def _mean(x: Tensor) -> Tensor:
    return gather_with_gradient(x[None]).mean(dim=0)


class Lejepa(SingleNetworkMethod):
    """A backbone and a projection head."""

    def __init__(self, network: nn.Module, config: LejepaConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        assert config.hidden and config.out_dim and config.head_norm
        dim = width_of(network)
        with seeded(seed):
            self.network = network
            self.head = mlp_head([dim, config.hidden, config.hidden, config.out_dim], config.head_norm)

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        global_count = sum(view.role == "global" for view in views)
        if len(views) < 2:
            raise UsageError("lejepa compares views of one image", got="one view", hint="--set views.global_count=2")
        batch, out_dim = len(views[0].pixels), self.config.out_dim
        assert out_dim
        features = image_vectors(self.network, views)
        vectors = self.head(features).float().view(len(views), batch, out_dim)
        # The same directions on every process.
        draw = torch_generator(self.seed, "directions", progress.step)
        directions = torch.randn(out_dim, self.config.slices, generator=draw).to(vectors.device)
        directions = directions / directions.norm(dim=0)
        with torch.autocast(vectors.device.type, enabled=False):
            invariance = agreement(vectors, global_count)
            tests = [sigreg(view, directions, _mean, batch * world_size()) for view in vectors]
            normality = torch.stack(tests).mean()
        loss = (1 - self.config.weight) * invariance + self.config.weight * normality
        logs = {"invariance": invariance.detach(), "sigreg": normality.detach(), "feature_std": feature_std(features)}
        return StepOutput(loss, logs)


POINT = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
"""``sigreg`` of vectors that are all the same, divided by their number."""


def _is_one_point(line: Line, settings: Settings) -> bool:
    return line["sigreg"] > 0.9 * POINT * settings.n_compared and line["invariance"] < 0.01


def _explain_one_point(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"the test of normality gives {last['sigreg']:.1f}, and {POINT * settings.n_compared:.1f} is one point",
        "the test of normality has too little weight beside agreement",
        {"lejepa.weight": 0.05},
    )


CARD = MethodCard(
    name="lejepa",
    config_cls=LejepaConfig,
    resolve=resolve_lejepa,
    cls=Lejepa,
    peak_lr=PeakLR(transformer=6e-3, cnn=1.2e-2),
    failure_modes=(lasting(SAME_VECTOR, ("sigreg", "invariance"), _is_one_point, _explain_one_point, fatal=True),),
)
