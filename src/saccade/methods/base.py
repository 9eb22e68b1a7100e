"""What the training loop asks of a method; see methods/dino.py for one in full."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from saccade.base.contracts import Progress, StepOutput, View


@dataclass(frozen=True)
class Facts:
    """What a method's open settings are decided from.

    images      that are learned from          batch   images of an optimiser step
    together    images that are compared with one another: of a micro-batch, in all processes; None: all of ``batch``
    batch_norm  the network has batch norm     labels  the classes of the data, empty where there are none
    pretrained  the run starts from weights    transformer  the network is one
    maskable    patches can be left out of it           view_px, unit_px  of a global view, and what divides it
    dim         width of its tokens                     axes   2 for images, 3 for volumes
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
    together: int | None = None

    @property
    def compared(self) -> int:
        """How many images are compared with one another."""
        return self.batch if self.together is None else self.together


class Method(nn.Module, ABC):
    """Networks, loss and state of one way to learn. Everything that is state is in ``state_dict``.

    The loop calls, for every optimiser step: ``step`` for each micro-batch, ``before_update`` after the last
    backward pass, the optimiser, and ``after_update``.
    """

    @property
    @abstractmethod
    def backbone(self) -> Any:
        """The network that is evaluated and saved."""

    @property
    def learner(self) -> Any:
        """The network that gradients reach: the student where there is a teacher, else the one that is evaluated."""
        return self.backbone

    @abstractmethod
    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters for the optimiser."""

    @abstractmethod
    def step(self, views: list[View], progress: Progress) -> StepOutput:
        """Loss of one micro-batch; global views come first."""

    @abstractmethod
    def before_update(self, progress: Progress) -> None:
        """Change gradients before they are clipped and used."""

    @abstractmethod
    def after_update(self, progress: Progress) -> None:
        """Move what the optimiser does not: teachers, centres."""
