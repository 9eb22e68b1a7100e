"""The illnesses of a run that the doctor knows: one rule each, over the lines of a stretch of steps.

Each answer has a name, the figures it rests on, the likely cause in this run's settings, and one change to make. What
healthy runs look like is in docs/log.md: a teacher that is sure of its answers (entropy near 0) is healthy as long as
different images get different answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Line = Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """What the rules need to know of a run; None where the method has no such thing.

    batch: images of an optimiser step; together: those of a micro-batch, compared with one another (None: all of them)
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
    pretrained: bool = False
    temperature: float | None = None
    together: int | None = None

    @property
    def compared(self) -> int:
        return self.batch if self.together is None else self.together

    @property
    def chance(self) -> tuple[str, float] | None:
        """The loss of a network that guesses, in words and as a number; None where the method asks no such question."""
        if self.method == "pair":
            return "ln 2", math.log(2)
        if self.method == "position":
            return "ln 8", math.log(8)
        if self.method == "contrast" and self.temperature:
            return f"4 x {self.temperature:g} x ln {self.compared}", 4 * self.temperature * math.log(self.compared)
        return None


@dataclass(frozen=True)
class Diagnosis:
    """name: what it is called; since: the step from which it holds; change: settings by dotted key, where there are."""

    name: str
    since: int
    step: int
    evidence: str
    cause: str
    change: Mapping[str, float | str]
    advice: str

    def text(self) -> str:
        what = ", ".join(f"--set {key}={shown(value)}" for key, value in self.change.items()) or self.advice
        hint = f"{what} ({self.advice})" if self.change and self.advice else what
        return f"{self.name} since step {self.since}: {self.evidence}\n  likely cause: {self.cause}\n  change: {hint}"


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


Rule = Callable[[Sequence[Line], Sequence[Line], Settings], Diagnosis | None]


def _since(lines: Sequence[Line], holds: Callable[[Line], bool]) -> int:
    """The first step of the stretch at the end in which something holds."""
    since = int(lines[-1]["step"])
    for line in reversed(lines):
        if "loss" not in line:
            continue
        if not holds(line):
            break
        since = int(line["step"])
    return since


def _always(stretch: Sequence[Line], names: Sequence[str], holds: Callable[[Line], bool]) -> bool:
    return all(all(name in line for name in names) and holds(line) for line in stretch)


# --- methods with a teacher that answers with prototypes ----------------------------------------


def _uniform(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    if settings.out_dim is None:
        return None
    flat = math.log(settings.out_dim)

    def holds(line: Line) -> bool:
        # What an answer says of its image is the entropy of the mean answer less the mean entropy of the answers.
        told = line["marginal_entropy"] - line["teacher_entropy"]
        flatness = line["teacher_entropy"] / flat
        return line["kl"] < 0.1 and (flatness > 0.97 or (flatness > 0.5 and told < 0.005 * flat))

    if not _always(stretch, ("teacher_entropy", "marginal_entropy", "kl"), holds):
        return None
    last, cause = stretch[-1], _why_flat(settings)
    change = _sharper(settings) if settings.teacher_temp else {}
    evidence = (
        f"the teacher's entropy is {last['teacher_entropy']:.3f} of at most ln {settings.out_dim} = {flat:.3f}, and "
    )
    evidence += (
        f"student and teacher agree on it (KL {last['kl']:.4f}); the loss of {last['loss']:.3f} is nothing but that"
    )
    advice = "or a larger batch, or fewer prototypes"
    return Diagnosis("uniform collapse", _since(lines, holds), int(last["step"]), evidence, cause, change, advice)


def _sharper(settings: Settings) -> dict[str, float]:
    """Half of the teacher's temperature, and well below the student's; where it begins higher, that too."""
    assert settings.teacher_temp is not None
    wanted = min(settings.teacher_temp / 2, 0.4 * (settings.student_temp or 0.1))
    change = {f"{settings.method}.teacher_temp": wanted}
    if (settings.teacher_temp_start or 0.0) > wanted:
        change[f"{settings.method}.teacher_temp_start"] = wanted
    return change


def _why_flat(settings: Settings) -> str:
    student, teacher = settings.student_temp or 0.1, settings.teacher_temp or 0.04
    if teacher >= student:
        return f"no sharpening: the teacher's temperature {teacher:g} is not below the student's {student:g}"
    if settings.out_dim and settings.batch * 4 < settings.out_dim:
        return f"{settings.out_dim} prototypes are many for a batch of {settings.batch}: most never get an image"
    return f"the teacher's temperature {teacher:g} is too high for a batch of {settings.batch}"


def _one_prototype(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    if settings.out_dim is None:
        return None
    flat = math.log(settings.out_dim)

    def holds(line: Line) -> bool:
        return line["marginal_entropy"] < 0.1 * flat and line["kl"] < 0.1

    if not _always(stretch, ("marginal_entropy", "kl"), holds):
        return None
    last = stretch[-1]
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
        f"most ln {settings.out_dim} = {flat:.3f}"
    )
    return Diagnosis("one-prototype collapse", _since(lines, holds), int(last["step"]), evidence, cause, change, "")


def _flat_teacher(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    if settings.out_dim is None or not settings.teacher_temp:
        return None
    flat = math.log(settings.out_dim)

    def holds(line: Line) -> bool:
        return line["teacher_entropy"] > 0.9 * flat and line["kl"] >= 0.1

    late = stretch[0]["step"] >= 0.5 * settings.steps
    if not late or not _always(stretch, ("teacher_entropy", "kl"), holds):
        return None
    last = stretch[-1]
    evidence = f"after half of the run its entropy is {last['teacher_entropy']:.3f} of at most ln K = {flat:.3f}"
    change = _sharper(settings)
    return Diagnosis(
        "teacher temperature too high",
        _since(lines, holds),
        int(last["step"]),
        evidence,
        _why_flat(settings),
        change,
        "or more steps: an unsure teacher teaches slowly",
    )


# --- runs that start from weights ----------------------------------------------------------------


def fell_below(first: Line, now: Line, images: int) -> str | None:
    """The live figure that is lower than at the start by more than noise: k-NN where there are labels, else agreement.

    Noise is two standard errors of a share of the images that the live probe asks about (see train/live.py).
    """
    figure, asked = ("knn", min(500.0, images / 3)) if "knn" in first else ("agreement", min(256.0, images))
    if figure not in first or figure not in now:
        return None
    noise = 2 * math.sqrt(first[figure] * (1 - first[figure]) / max(1.0, asked))
    return figure if now[figure] < first[figure] - noise else None


def worse_than_start(first: Line | None, lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    probes = [line for line in lines if "rank" in line]
    if first is None or not settings.pretrained or not probes:
        return None
    figure = fell_below(first, probes[-1], settings.images)
    if figure is None:
        return None
    since = probes[-1]
    for line in reversed(probes):
        if fell_below(first, line, settings.images) is None:
            break
        since = line
    name = {"knn": "k-NN", "agreement": "agreement of two views"}[figure]
    return Diagnosis(
        "features worse than at the start",
        int(since["step"]),
        int(probes[-1]["step"]),
        f"{name} {100 * probes[-1][figure]:.1f} %, the weights it began with have {100 * first[figure]:.1f} %",
        f"the learning rate {settings.lr:g} moves the weights faster than {settings.images:,} images can teach them",
        {"optim.lr": settings.lr / 3},
        "",
    )


# --- all methods --------------------------------------------------------------------------------


def _one_vector(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    def holds(line: Line) -> bool:
        return line["spread"] < 0.02

    if not _always(stretch, ("spread",), holds):
        return None
    last = stretch[-1]
    evidence = f"vectors of different images point the same way (spread {last['spread']:.4f} of 1)"
    cause = f"the learning rate {settings.lr:g} threw the network into one point"
    change = {"optim.lr": settings.lr / 3}
    return Diagnosis(
        "all images have the same vector", _since(lines, holds), int(last["step"]), evidence, cause, change, ""
    )


POINT = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
"""The test of normality in ``lejepa`` for vectors that are all the same, over their number."""


def _one_answer(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    def holds(line: Line) -> bool:
        return line["sigreg"] > 0.9 * POINT * settings.compared and line["invariance"] < 0.01

    if not _always(stretch, ("sigreg", "invariance"), holds):
        return None
    last = stretch[-1]
    evidence = f"the test of normality gives {last['sigreg']:.1f}, and {POINT * settings.compared:.1f} is one point"
    cause = "the test of normality has too little weight beside agreement"
    change: dict[str, float | str] = {"lejepa.weight": 0.05}
    return Diagnosis(
        "all images have the same vector", _since(lines, holds), int(last["step"]), evidence, cause, change, ""
    )


def _guessing(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    if settings.chance is None or stretch[0]["step"] < 0.5 * settings.steps:
        return None
    words, chance = settings.chance
    mean = statistics.fmean(line["loss"] for line in stretch)
    if not abs(mean / chance - 1) < 0.005:
        return None
    causes = {
        "position": "these images have no layout: nothing in a patch tells where it lies",
        "pair": "views share too little to be known again, or the run is young",
        "contrast": "views share too little to be known again, or the run is young",
    }
    return Diagnosis(
        "no better than guessing",
        int(stretch[0]["step"]),
        int(stretch[-1]["step"]),
        f"the loss is {mean:.4f} on average, and {words} = {chance:.4f} is guessing",
        causes[settings.method],
        {},
        "another --method" if settings.method == "position" else "--recipe short, a higher --set optim.lr, more steps",
    )


def _dimensions(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    ranks = [(int(line["step"]), line["rank"]) for line in lines if "rank" in line]
    if len(ranks) < 3 or ranks[-1][0] < stretch[0]["step"]:
        return None
    best = max(rank for _, rank in ranks)
    low = [step for step, rank in ranks[-2:] if rank < max(1.5, 0.1 * best)]
    if len(low) < 2:
        return None
    evidence = f"the effective rank of the features is {ranks[-1][1]:.1f}, it was {best:.1f}"
    change: dict[str, float]
    if settings.momentum is not None and settings.momentum < 0.95:
        cause = f"the teacher follows the student at once (momentum {settings.momentum:g})"
        change = {f"{settings.method}.momentum": 0.99}
    elif settings.koleo == 0.0:
        change = {f"{settings.method}.koleo": 0.1}
        cause = "nothing keeps vectors apart (koleo is 0)"
    else:
        change, cause = {"optim.lr": settings.lr / 2}, "few directions carry all that the loss asks for"
    return Diagnosis("dimensional collapse", low[0], ranks[-1][0], evidence, cause, change, "")


def _no_learning(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    def holds(line: Line) -> bool:
        return line["grad_norm"] < 1e-5

    if not _always(stretch, ("grad_norm",), holds):
        return None
    last = stretch[-1]
    evidence = f"the norm of the gradient is {last['grad_norm']:.1e}: nothing changes any more"
    return Diagnosis(
        "no learning",
        _since(lines, holds),
        int(last["step"]),
        evidence,
        "everything that learns is at rest, frozen or dead",
        {},
        "start again with other weights or a lower --set optim.lr",
    )


def _diverged(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    before = [line["grad_norm"] for line in lines if "grad_norm" in line and line["step"] < stretch[0]["step"]]
    if len(before) < 10:
        return None
    usual = statistics.median(before[len(before) // 10 :])

    def holds(line: Line) -> bool:
        return line["grad_norm"] > max(10.0, 20 * usual)

    if not _always(stretch, ("grad_norm",), holds):
        return None
    now, since = stretch[-1]["grad_norm"], _since(lines, holds)
    evidence = f"gradients are {now:.1f} long, {now / max(usual, 1e-9):.0f} times what they were"
    cause = f"the learning rate {settings.lr:g} is too high"
    return Diagnosis("diverged", since, int(stretch[-1]["step"]), evidence, cause, {"optim.lr": settings.lr / 3}, "")


def _starving(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    def holds(line: Line) -> bool:
        return line["wait"] > 0.5

    if not _always(stretch, ("wait",), holds):
        return None
    last = stretch[-1]
    evidence = f"{100 * last['wait']:.0f} % of the time goes into reading images and making views"
    return Diagnosis(
        "the data loader starves the device",
        _since(lines, holds),
        int(last["step"]),
        evidence,
        "images are larger than the network needs, or there are too few cores for this device",
        {},
        "fewer local crops (views.local_count), or a smaller data.cache_px",
    )


def _koleo(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    def holds(line: Line) -> bool:
        return not line["koleo"] < 8.0  # -ln(1e-4) = 9.2 for identical vectors; not a number counts as well

    if not _always(stretch, ("koleo",), holds):
        return None
    last = stretch[-1]
    evidence = f"the KoLeo term is {last['koleo']:.2f}: vectors of different images are identical"
    change = {f"{settings.method}.koleo": 0.0}
    cause = "the same image many times in a batch, or a network that answers alike to all"
    return Diagnosis("KoLeo infinite", _since(lines, holds), int(last["step"]), evidence, cause, change, "saccade show")


RULES: tuple[Rule, ...] = (
    _diverged,
    _uniform,
    _one_prototype,
    _one_vector,
    _one_answer,
    _dimensions,
    _no_learning,
    _flat_teacher,
    _guessing,
    _koleo,
    _starving,
)
