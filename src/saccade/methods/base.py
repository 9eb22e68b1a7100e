"""What the training loop asks of a method, and the card that describes one; see methods/dino.py for one in full."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.methods.diagnosis import ChanceLoss, FailureMode

SHORT_STEPS, SHORTEST_STEPS = 20_000, 1_000
"""Runs under SHORT_STEPS steps are short: the values of papers, which are for long ones, do not suit them."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a method's open settings are decided from.

    Parameters
    ----------
    images
        Images of the training part.
    batch
        Images of an optimizer step, over all processes and micro-batches.
    steps
        Optimizer steps of the run.
    batch_norm, transformer, maskable
        The network has batch norm; is a transformer; can leave patches out.
    view_px, unit_px
        Side of a global view, and what divides it: the patch of a transformer, the stride of a CNN.
    dim
        D, the width of the network's tokens.
    axes
        2 for images, 3 for volumes.
    pretrained
        The run starts from weights.
    labels
        Classes of the data; empty where there are none.
    micro_batch
        Images of a micro-batch over all processes; None: all of ``batch``.
    """

    images: int
    batch: int
    steps: int
    batch_norm: bool = False
    transformer: bool = True
    maskable: bool = True
    view_px: int = 64
    unit_px: int = 8
    dim: int = 192
    axes: int = 2
    pretrained: bool = False
    labels: tuple[str, ...] = ()
    micro_batch: int | None = None

    @property
    def n_compared(self) -> int:
        """Images that are compared with one another."""
        return self.batch if self.micro_batch is None else self.micro_batch


class Method(nn.Module, ABC):
    """Networks, loss and state of one pretext task. Everything that is state is in ``state_dict``.

    The loop calls, for every optimizer step: ``step`` for each micro-batch, ``before_update`` after the last
    backward pass, the optimizer, and ``after_update``.
    """

    @property
    @abstractmethod
    def backbone(self) -> Any:
        """The network that is evaluated and saved: the teacher where there is one."""

    @property
    @abstractmethod
    def student_network(self) -> Any:
        """The backbone that gradients reach; ``backbone`` itself where there is no teacher."""

    @abstractmethod
    def step(self, views: list[View], progress: Progress) -> StepOutput:
        """Loss of one micro-batch; global views come first."""

    @abstractmethod
    def before_update(self, progress: Progress) -> None:
        """Change gradients before they are clipped and used."""

    @abstractmethod
    def after_update(self, progress: Progress) -> None:
        """Update what the optimizer does not: teachers, centers."""

    def parameters_to_train(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters for the optimizer: all that take gradients, in the order of registration."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)


class SingleNetworkMethod(Method):
    """A method without a teacher: ``network`` learns, and is evaluated and saved."""

    network: nn.Module

    @property
    def backbone(self) -> nn.Module:
        return self.network

    @property
    def student_network(self) -> nn.Module:
        return self.network

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        """Nothing: there is no teacher."""


class TeacherMethod(Method):
    """A method whose ``teacher`` follows the ``student`` (heads_and_ema.StudentTeacher); it is evaluated and saved."""

    student: nn.Module
    teacher: nn.Module

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    @property
    def student_network(self) -> nn.Module:
        return self.student


@dataclass(frozen=True)
class PeakLR:
    """Peak learning rates at 256 images per step; docs/log.md has what they rest on."""

    transformer: float
    cnn: float


@dataclass(frozen=True)
class MethodCard:
    """Everything that the rest of the package asks about one method. A plug-in is a module with one card.

    Parameters
    ----------
    name
        Of ``--method`` and of the method's section in the configuration.
    config_cls
        Frozen dataclass of settings; None in a field means: decide from the data.
    resolve
        (config, facts) to a config without Nones; UsageError for settings that are out of range.
    cls
        Makes the method: ``cls(student, config, seed=...)``, or ``cls(student, teacher, config, seed=...)``.
    peak_lr
        Peak learning rates from random weights; ``finetuning_lr`` from pretrained ones, where they differ, and
        ``short_lr`` from random weights in runs of up to SHORTEST_STEPS steps. In between the rate falls with the
        logarithm of the steps, until it is ``peak_lr`` at SHORT_STEPS.
    has_teacher
        A second network of the same shape follows the student.
    needs_masking
        Patches are left out, which only some networks allow.
    uses_labels
        Learns from labels; the network keeps only what the labels need.
    min_batch
        Fewest images of a micro-batch: 2 where images are compared.
    defaults
        Settings of other sections that the method needs, by dotted key.
    chance_loss
        (resolved config, images of a micro-batch) to the loss of a network that guesses; None where it has none.
    failure_modes
        Of this method, besides those of all methods (train/failure_modes.py).
    """

    name: str
    config_cls: type
    resolve: Callable[[Any, DatasetFacts], Any]
    cls: Callable[..., Method]
    peak_lr: PeakLR
    finetuning_lr: PeakLR | None = None
    short_lr: PeakLR | None = None
    has_teacher: bool = False
    needs_masking: bool = False
    supports_volumes: bool = True
    uses_labels: bool = False
    min_batch: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    chance_loss: Callable[[Any, int], ChanceLoss | None] | None = None
    failure_modes: tuple[FailureMode, ...] = ()

    def lr_at(self, steps: int, *, transformer: bool, pretrained: bool) -> float:
        """Peak learning rate at 256 images per step for a run of this length."""
        long = self.finetuning_lr if pretrained and self.finetuning_lr else self.peak_lr
        short = long if pretrained or self.short_lr is None else self.short_lr
        begin, end = (rates.transformer if transformer else rates.cnn for rates in (short, long))
        position = math.log(max(steps, 1) / SHORTEST_STEPS) / math.log(SHORT_STEPS / SHORTEST_STEPS)
        return float(begin * (end / begin) ** min(1.0, max(0.0, position)))

    def config_from(self, values: Mapping[str, Any]) -> Any:
        """The configuration that a saved run has; keys of other versions are left out."""
        names = {f.name for f in dataclasses.fields(self.config_cls)}
        return self.config_cls(**{key: value for key, value in values.items() if key in names})


TWO_GLOBAL_VIEWS: Mapping[str, Any] = {"views.global_count": 2, "views.local_count": 0}
ONE_CROP: Mapping[str, Any] = {
    "views.global_count": 1,
    "views.local_count": 0,
    "views.global_scale": (0.2, 1.0),
    "views.jitter_prob": 0.0,
    "views.grey_prob": 0.0,
    "views.blur_prob": (0.0, 0.0, 0.0),
    "views.low_resolution_prob": 0.0,
}
"""``defaults`` of methods that compare two views, and of those that look at one lightly augmented crop."""
