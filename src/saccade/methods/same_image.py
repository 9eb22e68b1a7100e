"""Do two crops come from one image? The simplest question, a yardstick.

A binary question, asked for matching and for mixed pairs alike.

The oldest form of telling images apart (Bromley et al. 1993; Hadsell et al. 2006), with a classifier as in Arandjelovic
and Zisserman 2017 ("Look, listen and learn", arXiv:1705.08168) on what two vectors share and where they differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.base.random import numpy_generator
from saccade.errors import UsageError
from saccade.methods.base import TWO_GLOBAL_VIEWS, Facts, Method, MethodCard, PeakLR
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import image_vectors, projection, spread
from saccade.runtime import gather_with_gradient, rank, world_size


@dataclass(frozen=True)
class PairConfig:
    """Settings of pair. None is decided from the data."""

    hidden: int | None = None
    """Width of the classifier; decided: 512."""


def resolve_pair(config: PairConfig, facts: Facts) -> PairConfig:
    """Fill every None; UsageError for a batch without a second image."""
    if facts.compared < 2:
        raise UsageError("pair needs a second image to mix with", got="a batch of 1", hint="--batch 64 or more")
    return dataclasses.replace(config, hidden=config.hidden or 512)


def compared(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
    """What two vectors share and where they differ, whichever comes first; float32."""
    one, other = (F.layer_norm(x.float(), x.shape[1:]) for x in (one, other))
    return torch.cat([(one - other).abs(), one * other], dim=1)


def pair_loss(same: Float[Tensor, "B"], mixed: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, both kinds of pairs counting alike; ln 2 is chance."""
    return 0.5 * (F.softplus(-same).mean() + F.softplus(mixed).mean())


class Pair(Method):
    """A backbone and a classifier of pairs."""

    def __init__(self, network: nn.Module, config: PairConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        assert config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = network
            self.head = projection([2 * int(network.dim), config.hidden, 1], "none")  # type: ignore[arg-type]

    @property
    def backbone(self) -> nn.Module:
        return self.network

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.network.named_parameters(prefix="network")
        yield from self.head.named_parameters(prefix="head")

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        if len(views) != 2:
            raise UsageError("pair compares two views", got=f"{len(views)} views", hint="--set views.global_count=2")
        batch, world = len(views[0].pixels), world_size()
        vectors = image_vectors(self.network, views)
        one, other = vectors.view(2, batch, -1)
        # In the order of the whole batch, which is dealt out to processes in turn: the partner of an image is the same
        # on one process or many.
        everyone = gather_with_gradient(other).view(world, batch, -1).transpose(0, 1).flatten(0, 1)
        shift = int(numpy_generator(self.seed, progress.step, "partner").integers(1, len(everyone)))
        own = torch.arange(batch, device=one.device) * world + rank()
        mixed = everyone[(own + shift) % len(everyone)]
        with torch.autocast(one.device.type, enabled=False):
            same_score, mixed_score = (self.head(compared(one, x))[:, 0] for x in (other, mixed))
        loss = pair_loss(same_score, mixed_score)
        right = torch.cat([same_score > 0, mixed_score < 0]).float().mean()
        return StepOutput(loss, {"accuracy": right, "spread": spread(vectors)})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        """Nothing: there is no teacher."""


CARD = MethodCard(
    name="pair",
    config_cls=PairConfig,
    resolve=resolve_pair,
    cls=Pair,
    peak_lr=PeakLR(transformer=2e-3, cnn=8e-3),
    min_batch=2,
    defaults=TWO_GLOBAL_VIEWS,
    chance_loss=lambda config, batch: ChanceLoss("ln 2", math.log(2)),
    failure_modes=(guessing("views share too little to be known again, or the run is young"),),
)
