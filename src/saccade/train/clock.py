"""How far a run is: by its steps, or by the fraction of its minutes that is used.

A run of ``--steps`` or ``--epochs`` counts steps and is reproducible. A run of ``--minutes`` follows the time: learning
rates, momenta and temperatures are functions of the fraction of the time used, measured before every step. It ends in
time, with complete schedules, also on a machine that becomes busy. The fraction is part of every checkpoint, so a
resumed run continues its schedules where they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from saccade import runtime
from saccade.train.settings import ResolvedTrain

EVALUATIONS = 10
EVALUATION_FRACTION = 0.1
"""Fewer evaluations than EVALUATIONS where they would take more of the time than this."""
CLOSING_SECONDS = 2.0
"""Reserved for the model and the report, beside one and a half evaluations."""


class Clock(Protocol):
    """What the training loop asks before every step; ``fraction`` is the same on all processes."""

    @property
    def deadline(self) -> float | None:
        """``time.monotonic()`` at which the run has ended; None: whenever its steps are done."""
        ...

    def fraction(self, step: int) -> float:
        """Of the run, 0 to 1; at 1 the run ends."""
        ...

    def should_evaluate(self, step: int, fraction: float) -> bool: ...

    def should_save(self, step: int, fraction: float) -> bool: ...

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long."""
        ...

    def state(self, fraction: float) -> dict[str, float]:
        """What a checkpoint of this step needs; empty where the step number says everything."""
        ...

    def bar_position(self, step: int, fraction: float) -> tuple[int, int]:
        """Done and total for a progress bar."""
        ...


class StepClock:
    """A run of ``train.steps`` steps."""

    deadline = None

    def __init__(self, train: ResolvedTrain):
        self.train = train

    def fraction(self, step: int) -> float:
        return min(1.0, step / max(1, self.train.steps))

    def should_evaluate(self, step: int, fraction: float) -> bool:
        return step % self.train.evaluate_every == 0 or fraction >= 1

    def should_save(self, step: int, fraction: float) -> bool:
        return step % self.train.save_every == 0 or fraction >= 1

    def evaluated(self, seconds: float) -> None:
        """Nothing: the time has no influence."""

    def state(self, fraction: float) -> dict[str, float]:
        return {}

    def bar_position(self, step: int, fraction: float) -> tuple[int, int]:
        return step, self.train.steps


class TimeClock:
    """A run that ends at a point in time.

    Parameters
    ----------
    deadline
        Reading of ``now`` at which the command should have ended, evaluation and report included.
    saved
        ``state`` of the checkpoint the run continues from; None for a new run.
    now
        Seconds of a steady clock.
    """

    def __init__(
        self, deadline: float, saved: Mapping[str, Any] | None = None, now: Callable[[], float] = time.monotonic
    ):
        self.deadline, self.now = deadline, now
        self.first = float(saved["fraction"]) if saved else 0.0
        self.reserve = float(saved["reserve"]) if saved else 0.0
        self.evaluations = int(saved["evaluations"]) if saved else EVALUATIONS
        self.began: float | None = now() if saved else None
        self.previous: float | None = None
        self.step_seconds = 0.0
        self.next_evaluation = self._after(self.first, self.evaluations) if saved else 0.0
        self.next_save = self._after(self.first, EVALUATIONS)

    @staticmethod
    def _after(fraction: float, count: int) -> float:
        """The next of ``count`` equal parts of a run."""
        return (int(fraction * count + 1e-9) + 1) / count

    def _available(self) -> float:
        assert self.began is not None
        return max(1e-3, self.deadline - self.reserve - self.began)

    def fraction(self, step: int) -> float:
        if self.began is None:  # the first evaluation has not been timed yet
            return 0.0
        now = self.now()
        if self.previous is not None:
            self.step_seconds = now - self.previous
        self.previous = now
        # A step that would end later than half of itself after the end is not begun.
        used = now - self.began
        fraction = self.first + (1 - self.first) * used / self._available()
        if used + self.step_seconds / 2 >= self._available():
            fraction = 1.0
        return float(runtime.max_over_ranks(min(1.0, fraction)))

    def should_evaluate(self, step: int, fraction: float) -> bool:
        if fraction < self.next_evaluation and fraction < 1:
            return False
        self.next_evaluation = self._after(fraction, self.evaluations)
        return True

    def should_save(self, step: int, fraction: float) -> bool:
        if fraction < self.next_save and fraction < 1:
            return False
        self.next_save = self._after(fraction, EVALUATIONS)
        return True

    def evaluated(self, seconds: float) -> None:
        seconds = float(runtime.max_over_ranks(seconds))
        self.reserve = 1.5 * seconds + CLOSING_SECONDS
        self.previous = None  # the time of an evaluation is not that of a step
        if self.began is not None:
            return
        self.began = self.now()
        affordable = int(EVALUATION_FRACTION * self._available() / max(1e-3, seconds))
        self.evaluations = min(EVALUATIONS, max(2, affordable))
        self.next_evaluation = self._after(0.0, self.evaluations)

    def state(self, fraction: float) -> dict[str, float]:
        remaining = max(0.0, self.deadline - self.now())
        return {
            "fraction": fraction,
            "remaining": remaining,
            "reserve": self.reserve,
            "evaluations": self.evaluations,
        }

    def bar_position(self, step: int, fraction: float) -> tuple[int, int]:
        if self.began is None:
            return 0, 1
        total = round(self._available() / max(1e-9, 1 - self.first))
        return round(fraction * total), total


def clock_of(train: ResolvedTrain, deadline: float | None, saved: Mapping[str, Any] | None) -> Clock:
    """The clock of a run.

    Parameters
    ----------
    deadline
        ``time.monotonic()`` at which the command should have ended; None: as long from now as the checkpoint says.
    saved
        ``state`` of the checkpoint the run continues from, empty where it has none (runs of saccade 0.1 turned their
        minutes into steps); None for a new run.
    """
    if not train.minutes or saved == {}:
        return StepClock(train)
    if deadline is None:
        assert saved is not None
        deadline = time.monotonic() + float(saved["remaining"])
    return TimeClock(deadline, saved)
