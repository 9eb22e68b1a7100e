"""Do two crops come from one image? The simplest question, a yardstick.

A siamese network (Bromley et al. 1993; Hadsell et al. 2006) with a binary classifier of matching and mixed pairs as in
Arandjelovic and Zisserman 2017 ("Look, listen and learn", arXiv:1705.08168).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.base.random import numpy_generator
from saccade.errors import UsageError
from saccade.methods.base import TWO_GLOBAL_VIEWS, DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import feature_std, image_vectors, mlp_head, seeded, width_of
from saccade.runtime import gather_with_gradient, rank, world_size


@dataclass(frozen=True)
class SameImageConfig:
    """Settings of same_image. None: decided from the data."""

    hidden: int | None = None
    """Width of the classifier; default: 512."""


def resolve_same_image(config: SameImageConfig, facts: DatasetFacts) -> SameImageConfig:
    """Fill every None; UsageError for a batch without a second image."""
    if facts.n_compared < 2:
        raise UsageError(
            "same_image needs a second image for mixed pairs", got="a batch of 1", hint="--batch 64 or more"
        )
    return dataclasses.replace(config, hidden=config.hidden or 512)


def pair_features(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, "B 2*D"]:
    """Absolute difference and product of two normalised vectors, so that their order has no effect; float32.

    Examples
    --------
    >>> pair_features(torch.rand(4, 3), torch.rand(4, 3)).shape
    torch.Size([4, 6])
    """
    a, b = (F.layer_norm(x.float(), x.shape[1:]) for x in (a, b))
    return torch.cat([(a - b).abs(), a * b], dim=1)


def same_image_loss(same: Float[Tensor, "B"], mixed: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of the scores of matching and of mixed pairs, which count alike.

    Examples
    --------
    >>> round(float(same_image_loss(torch.zeros(4), torch.zeros(4))), 4)  # chance: ln 2
    0.6931
    """
    return 0.5 * (F.softplus(-same).mean() + F.softplus(mixed).mean())


class SameImage(SingleNetworkMethod):
    """A backbone and a binary classifier of pairs."""

    def __init__(self, network: nn.Module, config: SameImageConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        assert config.hidden
        with seeded(seed):
            self.network = network
            self.head = mlp_head([2 * width_of(network), config.hidden, 1], "none")

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        if len(views) != 2:
            raise UsageError(
                "same_image compares two views", got=f"{len(views)} views", hint="--set views.global_count=2"
            )
        batch, world = len(views[0].pixels), world_size()
        vectors = image_vectors(self.network, views)
        first, second = vectors.view(2, batch, -1)
        # In the order of the full batch, which is dealt out to processes in turn: the partner of an image is the same
        # on one process and on many.
        candidates = gather_with_gradient(second).view(world, batch, -1).transpose(0, 1).flatten(0, 1)
        shift = int(numpy_generator(self.seed, progress.step, "partner").integers(1, len(candidates)))
        rows = torch.arange(batch, device=first.device) * world + rank()
        mixed = candidates[(rows + shift) % len(candidates)]
        with torch.autocast(first.device.type, enabled=False):
            same_score, mixed_score = (self.head(pair_features(first, x))[:, 0] for x in (second, mixed))
        loss = same_image_loss(same_score, mixed_score)
        accuracy = torch.cat([same_score > 0, mixed_score < 0]).float().mean()
        return StepOutput(loss, {"accuracy": accuracy, "feature_std": feature_std(vectors)})


CARD = MethodCard(
    name="same_image",
    config_cls=SameImageConfig,
    resolve=resolve_same_image,
    cls=SameImage,
    peak_lr=PeakLR(transformer=2e-3, cnn=8e-3),
    min_batch=2,
    defaults=TWO_GLOBAL_VIEWS,
    chance_loss=lambda config, batch: ChanceLoss("ln 2", math.log(2)),
    failure_modes=(guessing("two views share too little to be matched, or the run is young"),),
)
