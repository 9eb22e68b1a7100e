"""Failure modes of a training run: the records, and the rules that several methods share. No torch here.

A failure mode looks at the last lines of metrics.jsonl. Its diagnosis has a name, the evidence, the likely cause in the
settings of the run, and one change to make. Failure modes of one method are on its card; those of every method are in
train/failure_modes.py. What healthy runs look like is in docs/log.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Line = Mapping[str, float | int]
SAME_VECTOR = "all images have the same vector"
"""Name of a failure mode that has several signs."""


@dataclass(frozen=True)
class ChanceLoss:
    """The loss of a network that guesses: as a formula for people, e.g. ``ln 2``, and its value."""

    formula: str
    value: float


@dataclass(frozen=True)
class Settings:
    """What the rules need to know of a run; None where the method has no such setting.

    Parameters
    ----------
    batch
        Images of an optimiser step.
    micro_batch
        Images of a micro-batch, which are compared with one another; None: all of ``batch``.
    chance
        The loss of guessing, where the method has one.
    """

    method: str
    batch: int
    images: int
    steps: int
    lr: float
    warmup_fraction: float = 0.1
    out_dim: int | None = None
    student_temp: float | None = None
    teacher_temp: float | None = None
    teacher_temp_start: float | None = None
    momentum: float | None = None
    center_momentum: float | None = None
    centering: str | None = None
    koleo: float | None = None
    coding_rate: float | None = None
    pretrained: bool = False
    micro_batch: int | None = None
    chance: ChanceLoss | None = None

    @property
    def n_compared(self) -> int:
        """Images that are compared with one another."""
        return self.batch if self.micro_batch is None else self.micro_batch


@dataclass(frozen=True)
class Diagnosis:
    """A failure mode that holds at ``step``, and has held since step ``since``.

    Parameters
    ----------
    change
        New settings by dotted key; empty where only ``advice`` applies.
    """

    name: str
    since: int
    step: int
    evidence: str
    cause: str
    change: Mapping[str, float | str]
    advice: str

    def text(self) -> str:
        what = ", ".join(f"--set {key}={format_value(value)}" for key, value in self.change.items()) or self.advice
        hint = f"{what} ({self.advice})" if self.change and self.advice else what
        return f"{self.name} since step {self.since}: {self.evidence}\n  likely cause: {self.cause}\n  change: {hint}"


def format_value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


Rule = Callable[[Sequence[Line], Sequence[Line], Settings], Diagnosis | None]
"""(the lines of the last stretch of steps, all recent lines, settings) to a diagnosis, or None where all is well."""


@dataclass(frozen=True)
class FailureMode:
    """A rule by the name of its diagnosis. fatal: such a run learns nothing any more (see ``train.on_collapse``)."""

    name: str
    detect: Rule
    fatal: bool = False


def first_step(lines: Sequence[Line], holds: Callable[[Line], bool]) -> int:
    """The first step of the stretch at the end of ``lines`` in which a condition holds."""
    since = int(lines[-1]["step"])
    for line in reversed(lines):
        if "loss" not in line:
            continue
        if not holds(line):
            break
        since = int(line["step"])
    return since


def always(stretch: Sequence[Line], keys: Sequence[str], holds: Callable[[Line], bool]) -> bool:
    """Whether every line has these keys and meets the condition."""
    return all(all(key in line for key in keys) and holds(line) for line in stretch)


@dataclass(frozen=True)
class Explanation:
    """Evidence, likely cause and remedy of a failure mode; the fields are those of ``Diagnosis``."""

    evidence: str
    cause: str
    change: Mapping[str, float | str] = field(default_factory=dict)
    advice: str = ""


def lasting(
    name: str,
    keys: Sequence[str],
    holds: Callable[[Line, Settings], bool],
    explain: Callable[[Line, Settings], Explanation],
    *,
    fatal: bool = False,
    begin: float = 0.0,
) -> FailureMode:
    """A condition that every line of the stretch meets.

    Parameters
    ----------
    keys
        Logged figures that the condition needs; the failure mode is not looked for where a line lacks one.
    holds
        Whether a line meets the condition.
    explain
        Called with the last line.
    begin
        Fraction of the run before which the condition means nothing.
    """

    def detect(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
        def meets(line: Line) -> bool:
            return holds(line, settings)

        if stretch[0]["step"] < begin * settings.steps or not always(stretch, keys, meets):
            return None
        explanation = explain(stretch[-1], settings)
        return Diagnosis(name, first_step(lines, meets), int(stretch[-1]["step"]), **vars(explanation))

    return FailureMode(name, detect, fatal=fatal)


def guessing(cause: str, advice: str = "--recipe short, a higher --set optim.lr, more steps") -> FailureMode:
    """The loss still equals that of guessing in the second half of the run."""
    name = "no better than guessing"

    def detect(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
        chance = settings.chance
        if chance is None or stretch[0]["step"] < 0.5 * settings.steps:
            return None
        mean = statistics.fmean(line["loss"] for line in stretch)
        if not abs(mean / chance.value - 1) < 0.005:
            return None
        evidence = f"the loss is {mean:.4f} on average, and {chance.formula} = {chance.value:.4f} is guessing"
        return Diagnosis(name, int(stretch[0]["step"]), int(stretch[-1]["step"]), evidence, cause, {}, advice)

    return FailureMode(name, detect)


# --- teachers that answer with prototypes (DINO, DINOv2) ------------------------------------------


def _largest_entropy(settings: Settings) -> float:
    """ln K; infinite for methods without prototypes."""
    return math.log(settings.out_dim) if settings.out_dim else math.inf


def _is_uniform(line: Line, settings: Settings) -> bool:
    # Information of an output about its image: entropy of the mean output less the mean entropy of the outputs.
    information = line["marginal_entropy"] - line["teacher_entropy"]
    largest = _largest_entropy(settings)
    flatness = line["teacher_entropy"] / largest
    return line["kl"] < 0.1 and (flatness > 0.97 or (flatness > 0.5 and information < 0.005 * largest))


def _explain_uniform(last: Line, settings: Settings) -> Explanation:
    evidence = (
        f"the teacher's entropy is {last['teacher_entropy']:.3f} of at most ln {settings.out_dim} = "
        f"{_largest_entropy(settings):.3f}, and student and teacher agree on it (KL {last['kl']:.4f}); the loss of "
        f"{last['loss']:.3f} is nothing but that"
    )
    change = _sharper(settings) if settings.teacher_temp else {}
    return Explanation(evidence, _why_flat(settings), change, "or a larger batch, or fewer prototypes")


def _sharper(settings: Settings) -> dict[str, float]:
    """Half of the teacher's temperature, and well below the student's; where it begins higher, that too."""
    assert settings.teacher_temp is not None
    temperature = min(settings.teacher_temp / 2, 0.4 * (settings.student_temp or 0.1))
    change = {f"{settings.method}.teacher_temp": temperature}
    if (settings.teacher_temp_start or 0.0) > temperature:
        change[f"{settings.method}.teacher_temp_start"] = temperature
    return change


def _why_flat(settings: Settings) -> str:
    student, teacher = settings.student_temp or 0.1, settings.teacher_temp or 0.04
    if teacher >= student:
        return f"no sharpening: the teacher's temperature {teacher:g} is not below the student's {student:g}"
    if settings.out_dim and settings.batch * 4 < settings.out_dim:
        return f"{settings.out_dim} prototypes are many for a batch of {settings.batch}: most never get an image"
    return f"the teacher's temperature {teacher:g} is too high for a batch of {settings.batch}"


def _is_one_prototype(line: Line, settings: Settings) -> bool:
    return settings.out_dim is not None and (
        line["marginal_entropy"] < 0.1 * math.log(settings.out_dim) and line["kl"] < 0.1
    )


def _explain_one_prototype(last: Line, settings: Settings) -> Explanation:
    change: dict[str, float | str]
    if settings.centering == "none":
        cause, change = "no centring: one answer may win for all images", {f"{settings.method}.centering": "mean"}
    elif settings.center_momentum == 1.0:
        cause, change = "no centring: the centre never moves", {f"{settings.method}.center_momentum": 0.9}
    elif settings.momentum is not None and settings.momentum < 0.95:
        cause = f"the teacher follows the student at once (momentum {settings.momentum:g})"
        change = {f"{settings.method}.momentum": 0.99}
    else:
        cause, change = f"the learning rate {settings.lr:g} is high for this start", {"optim.lr": settings.lr / 2}
    evidence = (
        f"nearly all images get one answer: the entropy of the mean answer is {last['marginal_entropy']:.3f} of at "
        f"most ln {settings.out_dim} = {_largest_entropy(settings):.3f}"
    )
    return Explanation(evidence, cause, change)


def _is_flat_teacher(line: Line, settings: Settings) -> bool:
    if not settings.teacher_temp:
        return False
    return line["teacher_entropy"] > 0.9 * _largest_entropy(settings) and line["kl"] >= 0.1


def _explain_flat_teacher(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"after half of the run its entropy is {last['teacher_entropy']:.3f} of at most ln K = "
        f"{_largest_entropy(settings):.3f}",
        _why_flat(settings),
        _sharper(settings),
        "or more steps: an unsure teacher teaches slowly",
    )


def _explain_koleo(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"the KoLeo term is {last['koleo']:.2f}: vectors of different images are identical",
        "the same image many times in a batch, or a network that answers alike to all",
        {f"{settings.method}.koleo": 0.0},
        "saccade show",
    )


PROTOTYPE_FAILURES = (
    lasting(
        "uniform collapse",
        ("teacher_entropy", "marginal_entropy", "kl"),
        _is_uniform,
        _explain_uniform,
        fatal=True,
    ),
    lasting(
        "one-prototype collapse", ("marginal_entropy", "kl"), _is_one_prototype, _explain_one_prototype, fatal=True
    ),
    lasting(
        "teacher temperature too high", ("teacher_entropy", "kl"), _is_flat_teacher, _explain_flat_teacher, begin=0.5
    ),
    # -ln(1e-4) = 9.2 for identical vectors; NaN counts as well
    lasting("KoLeo infinite", ("koleo",), lambda line, _: not line["koleo"] < 8.0, _explain_koleo),
)
