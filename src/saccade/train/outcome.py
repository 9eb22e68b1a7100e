"""What a finished run that began with random weights came to: did it learn anything, and at the speed it began with?

The failure modes of ``failure_modes.py`` look at stretches of a run; these compare its end with its beginning.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from saccade.methods.diagnosis import Diagnosis, Line, Settings
from saccade.methods.registry import card_of

FEW_STEPS = 500
"""Runs shorter than this that learned nothing are called too short; longer ones have another reason."""
NO_EVIDENCE_STEPS = 50
"""Fewest steps of a run whose images have no labels to probe with."""
SLOWER = 2.0
MIN_INTERVALS = 8


def examine_outcome(lines: Sequence[Line], settings: Settings) -> list[Diagnosis]:
    """Diagnoses of a run that has ended; empty for runs from weights, runs with labels, and runs that learned.

    Parameters
    ----------
    lines
        Of metrics.jsonl, in the order of their steps.
    """
    if settings.pretrained or card_of(settings.method).uses_labels or not lines:
        return []
    diagnoses = (_learned_nothing(lines, settings), _slower(lines))
    return [diagnosis for diagnosis in diagnoses if diagnosis is not None]


def _noise(accuracy: float, images: int) -> float:
    """Two standard errors of the difference of two live k-NN accuracies; the probe asks up to 500 images."""
    asked = max(1.0, min(500.0, images / 3))
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / asked)


def _learned_nothing(lines: Sequence[Line], settings: Settings) -> Diagnosis | None:
    probes = [line for line in lines if "rank" in line]
    steps = int(lines[-1]["step"])
    if not probes or probes[0]["step"] != 0:
        return None
    first, last = probes[0], probes[-1]
    if "knn" in first and "knn" in last:
        best = max(line["knn"] for line in probes[1:] if "knn" in line) if len(probes) > 1 else last["knn"]
        if best > first["knn"] + _noise(first["knn"], settings.images):
            return None
        chance = 100 * _noise(first["knn"], settings.images)
        evidence = (
            f"live k-NN is {100 * last['knn']:.1f} % after {steps:,} steps, random weights have "
            f"{100 * first['knn']:.1f} % (differences below {chance:.1f} are chance)"
        )
    elif steps < NO_EVIDENCE_STEPS:
        evidence = f"the run has {steps:,} steps"
    else:
        return None
    remedy = "train longer, or with --method lejepa --backbone resnet10_w32, which learn in fewer steps"
    if steps < FEW_STEPS:
        return Diagnosis(
            "too few steps to learn anything",
            0,
            steps,
            evidence,
            f"{settings.method} has seen {steps * settings.batch:,} images",
            {},
            remedy,
        )
    cause = f"{settings.method} with this network has learned nothing that tells these images apart"
    return Diagnosis("not above random weights", 0, steps, evidence, cause, {}, remedy)


def _slower(lines: Sequence[Line]) -> Diagnosis | None:
    """Whether the steps of most of a run took much longer than those it began with."""
    timed = [line for line in lines if "seconds" in line and "loss" in line]
    pairs = [(a, b) for a, b in itertools.pairwise(timed) if b["step"] > a["step"] and "rank" not in b]
    if len(pairs) < MIN_INTERVALS:
        return None
    seconds = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs]
    quarter = len(seconds) // 4
    begin, rest = statistics.median(seconds[:quarter]), statistics.median(seconds[quarter:])
    if rest < SLOWER * begin:
        return None
    return Diagnosis(
        "slower than planned",
        int(pairs[quarter][1]["step"]),
        int(timed[-1]["step"]),
        f"a step took {rest:.2f} s, it was {begin:.2f} s at the beginning",
        "other work on this machine takes its cores, and threads wait for each other",
        {},
        "fewer other jobs, or one thread: OMP_NUM_THREADS=1",
    )
