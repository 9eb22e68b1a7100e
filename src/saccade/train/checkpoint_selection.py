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
from saccade.train.loop import Judge, Plan
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


def better(one: Mapping[str, float], other: Mapping[str, float], images: int) -> bool:
    """Whether one has a higher quality than the other by more than two standard errors of its agreement."""
    p = one["agreement"]
    noise = 4 * math.sqrt(p * (1 - p) / min(EXAMINED, images)) * math.log(max(1.0, one["rank"]))
    return quality(one) > quality(other) + noise


class Chooser:
    """Measures with the live probe, and keeps the best backbone of a run in ``checkpoints/best``.

    start    the step the run goes on from; what was kept later than that is forgotten
    images   that are learned from
    In runs that start from weights, steps with worse features than at the start are not chosen; in others, random
    weights and what is nearly that are not.
    """

    finished: str | None = None

    def __init__(
        self, probe: Judge, method: Method, plan: Plan, start: int, *, images: int, say: Callable[[str], None]
    ):
        self.probe, self.backbone, self.plan, self.images, self.say = probe, method.backbone, plan, images, say
        found = checkpoint.load_named(plan.run, checkpoint.BEST) if start else None
        best, first = (None, None) if found is None else (dict(found["figures"]), dict(found["first"]))
        self.best: dict[str, float] | None = best if best and best["step"] <= start else None
        self.first: dict[str, float] | None = first if first and first["step"] <= start else None
        self.last: dict[str, float] | None = None

    def __call__(self, step: int) -> dict[str, float]:
        """The figures of a step; the backbone is kept where it is the best so far."""
        figures = self.probe(step)
        self.last = {"step": step, **figures}
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
        """Whether this step may become the model: learned, or where it began with weights, not worse than they."""
        if not self.plan.pretrained:
            return figures["step"] >= EARLY * (self.plan.train.steps or 0)
        return self.first is None or fell_below(self.first, figures, self.images) is None

    def take(self) -> dict[str, Any] | None:
        """Put the chosen weights into the backbone; the figures of the chosen and of the last step.

        None where nothing was measured.
        """
        if self.last is None:
            return None
        chosen = self.last
        if self.best is not None and (not self._allowed(self.last) or better(self.best, self.last, self.images)):
            found = checkpoint.load_named(self.plan.run, checkpoint.BEST)
            if found is not None:
                chosen = dict(found["figures"])
                self.backbone.load_state_dict(found["backbone"])
        return {"chosen": chosen, "last": self.last, "rule": RULE}
