"""Learn from labels, the yardstick; saccade finetune has more options for it.

Cross-entropy of a linear classifier on a backbone, from scratch or from learned weights.

Layer-wise decay of the learning rate is Clark et al. 2020 (ELECTRA, arXiv:2003.10555), as MAE and BEiT use it to
fine-tune. A frozen backbone gets batch norm without scale before the classifier (He et al. 2022, MAE, appendix A.1).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import DataError, UsageError
from saccade.methods.base import DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.heads_and_ema import seeded, width_of


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of supervised training. None: decided from the data."""

    classes: tuple[str, ...] | None = None
    """In the order of the classifier's outputs; default: the labels of the data, sorted."""
    frozen: bool = False
    """Linear probe: train the classifier only; the backbone stays as it is, batch statistics included."""
    label_smoothing: float = 0.0


def resolve_supervised(config: SupervisedConfig, facts: DatasetFacts) -> SupervisedConfig:
    """Fill every None; DataError for fewer than two classes."""
    classes = facts.labels if config.classes is None else config.classes
    if len(set(classes)) < 2 or not set(facts.labels) <= set(classes):
        raise DataError(
            "supervised training needs at least two classes",
            got=", ".join(facts.labels[:10]) or "no labels",
            expected=", ".join(classes[:10]) or "two or more",
            hint="use a table with a label column, or one folder per class",
        )
    if not 0 <= config.label_smoothing < 1:
        raise UsageError(
            "supervised.label_smoothing must be a fraction", got=config.label_smoothing, expected="0 to below 1"
        )
    return dataclasses.replace(config, classes=tuple(classes))


class Supervised(SingleNetworkMethod):
    """A backbone and a linear classifier of its image vector."""

    def __init__(self, network: nn.Module, config: SupervisedConfig, *, seed: int):
        super().__init__()
        assert config.classes is not None
        self.config = config
        dim = width_of(network)
        with seeded(seed):
            self.network = network.requires_grad_(not config.frozen)
            self.head_norm = nn.BatchNorm1d(dim, affine=False) if config.frozen else nn.Identity()
            self.head = nn.Linear(dim, len(config.classes))
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def classify(self, pixels: Float[Tensor, "B C *size"]) -> Float[Tensor, "B K"]:
        """Scores of the classes before the softmax, float32."""
        if self.config.frozen:
            self.network.eval()
            with torch.no_grad():
                features = self.network(pixels).cls
        else:
            features = self.network(pixels).cls
        with torch.autocast(pixels.device.type, enabled=False):
            scores: Tensor = self.head(self.head_norm(features.float()))
        return scores

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        labels = views[0].labels
        assert labels is not None
        labels = labels.repeat(len(views))
        scores = self.classify(torch.cat([view.pixels for view in views]))
        loss = F.cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)
        return StepOutput(loss, {"accuracy": (scores.argmax(dim=1) == labels).float().mean()})


CARD = MethodCard(
    name="supervised",
    config_cls=SupervisedConfig,
    resolve=resolve_supervised,
    cls=Supervised,
    peak_lr=PeakLR(transformer=2e-3, cnn=8e-3),
    finetuning_lr=PeakLR(transformer=2e-3, cnn=4e-3),
    uses_labels=True,
    defaults={"views.global_count": 1, "views.local_count": 0},
)
