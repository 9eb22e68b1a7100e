"""Predict by how many quarter turns an image was rotated (RotNet).

Gidaris, Singh and Komodakis 2018, arXiv:1803.07728: to know which way up an image is, a network has to know what is in
it. For photographs and organs; tissue has no "up".
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import feature_std, mlp_head, seeded, width_of

TURNS = 4


@dataclass(frozen=True)
class RotationConfig:
    """Settings of rotation. None: decided from the data."""

    hidden: int | None = None
    """Width of the classifier; default: 256 from 10,000 images on, 64 below."""


def resolve(config: RotationConfig, facts: DatasetFacts) -> RotationConfig:
    hidden = config.hidden or (256 if facts.images >= 10_000 else 64)
    if hidden < 1:
        raise UsageError("rotation.hidden must be above 0", got=hidden)
    return dataclasses.replace(config, hidden=hidden)


class Rotation(SingleNetworkMethod):
    """A backbone and a classifier of four rotations; every image is shown in all of them."""

    def __init__(self, network: nn.Module, config: RotationConfig, *, seed: int):
        super().__init__()
        assert config.hidden
        with seeded(seed):
            self.network = network
            self.head = mlp_head([width_of(network), config.hidden, TURNS], "layer")

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        pixels = torch.cat([torch.rot90(views[0].pixels, turns, (2, 3)) for turns in range(TURNS)])
        labels = torch.arange(TURNS, device=pixels.device).repeat_interleave(len(views[0].pixels))
        vectors = self.network(pixels).cls
        scores = self.head(vectors).float()
        accuracy = (scores.argmax(dim=1) == labels).float().mean()
        return StepOutput(F.cross_entropy(scores, labels), {"accuracy": accuracy, "feature_std": feature_std(vectors)})


CARD = MethodCard(
    name="rotation",
    config_cls=RotationConfig,
    resolve=resolve,
    cls=Rotation,
    peak_lr=PeakLR(transformer=2e-3, cnn=8e-3),
    supports_volumes=False,
    defaults={"views.global_count": 1, "views.local_count": 0, "views.turn90": False},
    chance_loss=lambda config, batch: ChanceLoss("ln 4", math.log(TURNS)),
    failure_modes=(guessing("these images have no orientation", "another --method"),),
)
