"""Which checkpoint becomes the model: the best by figures that need no labels, else the last.

The figures are those of the live probe: the effective rank of the features (RankMe, Garrido et al. 2023) and how often
student and teacher agree on which image a view comes from. How far each can be trusted is in docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from saccade import runtime
from saccade.errors import StorageError
from saccade.methods.base import Method
from saccade.train import checkpoint
from saccade.train.failure_modes import fell_below
from saccade.train.loop import Evaluator, Plan
from saccade.train.monitor import EXAMINED

RULE = (
    "the checkpoint with the highest (2 agreement - 1) ln(effective rank), which uses no labels; the last one unless "
    "that is better by more than noise; not from the first fifth of a run that began with random weights"
)
EARLY = 0.2
"""Random weights fill all directions and, where views differ little, match them too: masked image modelling took k-NN
from 22 to 46 % while the figures fell from those of step 0 (docs/log.md)."""


def quality(figures: Mapping[str, float]) -> float:
    """Agreement above chance times the logarithm of the effective rank: 0 where views do not match or all vectors are
    one."""
    return max(0.0, 2 * figures["agreement"] - 1) * math.log(max(1.0, figures["rank"]))


def better(figures: Mapping[str, float], other: Mapping[str, float], images: int) -> bool:
    """Whether the quality is higher than the other's by more than two standard errors of the agreement."""
    p = figures["agreement"]
    noise = 4 * math.sqrt(p * (1 - p) / min(EXAMINED, images)) * math.log(max(1.0, figures["rank"]))
    return quality(figures) > quality(other) + noise


class CheckpointSelector:
    """Measures with the live probe, and saves the best backbone of a run in ``checkpoints/best``.

    In runs that start from weights, steps with worse features than at the start are not selected; in others, the first
    fifth of the run is not.

    Parameters
    ----------
    start
        The step the run continues from; a best state saved after it is ignored.
    images
        Number of images the run learns from.
    """

    stop_reason: str | None = None

    def __init__(
        self, probe: Evaluator, method: Method, plan: Plan, start: int, *, images: int, say: Callable[[str], None]
    ):
        self.probe, self.backbone, self.plan, self.images, self.say = probe, method.backbone, plan, images, say
        saved = checkpoint.load_named(plan.run, checkpoint.BEST, say) if start else None
        best, first = (None, None) if saved is None else (dict(saved["figures"]), dict(saved["first"]))
        self.best: dict[str, float] | None = best if best and best["step"] <= start else None
        self.first: dict[str, float] | None = first if first and first["step"] <= start else None
        self.last: dict[str, float] | None = None

    def __call__(self, step: int, fraction: float) -> dict[str, float]:
        """The figures of a step; the backbone is saved where it is the best so far."""
        figures = self.probe(step, fraction)
        self.last = {"step": step, "fraction": fraction, **figures}
        self.first = self.first or self.last
        if not self._allowed(self.last) or (self.best is not None and quality(self.last) <= quality(self.best)):
            return figures
        self.best = self.last
        if runtime.rank() == 0:
            state = {"figures": self.best, "first": self.first, "backbone": self.backbone.state_dict()}
            try:
                checkpoint.save_named(self.plan.run, checkpoint.BEST, state)
            except StorageError as error:
                self.say(f"{error}\n  training goes on")
        return figures

    def _allowed(self, figures: Mapping[str, float]) -> bool:
        """Whether this step may become the model."""
        if not self.plan.pretrained:
            return figures["fraction"] >= EARLY
        return self.first is None or fell_below(self.first, figures, self.images) is None

    def restore_best(self) -> dict[str, Any] | None:
        """Load the selected weights into the backbone. Returns the figures of the selected and of the last step.

        None where nothing was measured.
        """
        if self.last is None:
            return None
        chosen = self.last
        if self.best is not None and (not self._allowed(self.last) or better(self.best, self.last, self.images)):
            saved = checkpoint.load_named(self.plan.run, checkpoint.BEST, self.say)
            if saved is not None:
                chosen = dict(saved["figures"])
                self.backbone.load_state_dict(saved["backbone"])
        return {"chosen": chosen, "last": self.last, "rule": RULE}
