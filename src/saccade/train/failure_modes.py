"""Failure modes that a run of any method can have; those of one method are on its card (methods/registry.py).

See methods/diagnosis.py for the records and for how a rule is called.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from saccade.methods.diagnosis import (
    SAME_VECTOR,
    Diagnosis,
    Explanation,
    FailureMode,
    Line,
    Settings,
    always,
    first_step,
    lasting,
)

# --- runs that start from weights ----------------------------------------------------------------


def fell_below(first: Line, now: Line, images: int) -> str | None:
    """The live figure that is lower than at the start by more than noise: k-NN where there are labels, else agreement.

    Noise is two standard errors of a proportion of the images that the live probe uses (train/monitor.py).
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


def _direction_std(line: Line) -> float:
    """``feature_std``, or its name in runs of saccade 0.1; infinite where it is not logged."""
    return line.get("feature_std", line.get("spread", math.inf))


def _explain_one_vector(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"vectors of different images point the same way (feature_std {_direction_std(last):.4f} of 1)",
        f"the learning rate {settings.lr:g} threw the network into one point",
        {"optim.lr": settings.lr / 3},
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
    elif settings.koleo == 0.0 and not settings.coding_rate:
        change = {f"{settings.method}.koleo": 0.1}
        cause = "nothing keeps vectors apart (koleo is 0)"
    else:
        change, cause = {"optim.lr": settings.lr / 2}, "few directions carry all that the loss asks for"
    return Diagnosis("dimensional collapse", low[0], ranks[-1][0], evidence, cause, change, "")


def _explain_no_learning(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"the norm of the gradient is {last['grad_norm']:.1e}: nothing changes any more",
        "everything that learns is at rest, frozen or dead",
        advice="start again with other weights or a lower --set optim.lr",
    )


def _diverged(stretch: Sequence[Line], lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    before = [line["grad_norm"] for line in lines if "grad_norm" in line and line["step"] < stretch[0]["step"]]
    if len(before) < 10:
        return None
    usual = statistics.median(before[len(before) // 10 :])

    def holds(line: Line) -> bool:
        return line["grad_norm"] > max(10.0, 20 * usual)

    if not always(stretch, ("grad_norm",), holds):
        return None
    now, since = stretch[-1]["grad_norm"], first_step(lines, holds)
    evidence = f"gradients are {now:.1f} long, {now / max(usual, 1e-9):.0f} times what they were"
    cause = f"the learning rate {settings.lr:g} is too high"
    return Diagnosis("diverged", since, int(stretch[-1]["step"]), evidence, cause, {"optim.lr": settings.lr / 3}, "")


def _explain_starving(last: Line, settings: Settings) -> Explanation:
    return Explanation(
        f"{100 * last['wait']:.0f} % of the time goes into reading images and making views",
        "images are larger than the network needs, or there are too few cores for this device",
        advice="fewer local crops (views.local_count), or a smaller data.cache_px",
    )


FAILURE_MODES = (
    FailureMode("diverged", _diverged, fatal=True),
    lasting(SAME_VECTOR, (), lambda line, _: _direction_std(line) < 0.02, _explain_one_vector, fatal=True),
    FailureMode("dimensional collapse", _dimensions, fatal=True),
    lasting("no learning", ("grad_norm",), lambda line, _: line["grad_norm"] < 1e-5, _explain_no_learning, fatal=True),
    lasting("the data loader starves the device", ("wait",), lambda line, _: line["wait"] > 0.5, _explain_starving),
)
"""By severity."""
