"""What is wrong with a run, from its logged figures alone: live in the loop, or afterwards from metrics.jsonl.

Each failure mode has to hold for a stretch after the warm-up: 100 steps, or a fifth of a run shorter than 500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.base import config, run_folder
from saccade.methods.diagnosis import Diagnosis, FailureMode, Line, Settings
from saccade.methods.registry import card_of
from saccade.train.failure_modes import FAILURE_MODES, worse_than_start
from saccade.train.outcome import examine_outcome

HOLD = 100
MEMORY = 1000  # lines that are looked at, so that a long run is examined as quickly as a short one
WORSE_THAN_START = "features worse than at the start"


def failure_modes(method: str) -> tuple[FailureMode, ...]:
    """Of a run by this method, the most severe first."""
    diverged, same_vector, *others = FAILURE_MODES
    specific = card_of(method).failure_modes
    fatal = (
        diverged,
        same_vector,
        *(mode for mode in specific if mode.fatal),
        *(mode for mode in others if mode.fatal),
    )
    return fatal + tuple(mode for mode in (*specific, *others) if not mode.fatal)


def examine(lines: Sequence[Line], settings: Settings) -> list[Diagnosis]:
    """What is wrong at the last of these lines: one diagnosis per failure mode, the most severe first.

    lines   of metrics.jsonl in the order of their steps
    """
    first = next((line for line in lines if "rank" in line), None)
    lines = lines[-MEMORY:]
    worse = worse_than_start(first, lines, settings)
    diagnoses = [worse] if worse is not None else []
    hold = max(3.0, min(HOLD, 0.2 * settings.steps))
    begin = settings.warmup_fraction * settings.steps
    stretch: list[Line] = []
    for line in reversed(lines):
        if line["step"] < begin or (stretch and line["step"] <= stretch[0]["step"] - hold):
            break
        if "loss" in line:
            stretch.append(line)
    stretch.reverse()
    if len(stretch) < 3 or stretch[-1]["step"] - stretch[0]["step"] < 0.6 * hold:
        return diagnoses
    detected = (mode.detect(stretch, lines, settings) for mode in failure_modes(settings.method))
    return diagnoses + [diagnosis for diagnosis in detected if diagnosis is not None]


class Doctor:
    """Looks at a run while it goes, and reports each failure mode once.

    Parameters
    ----------
    lines
        Of metrics.jsonl, logged so far; what they show counts as reported.
    stop
        End the run at a fatal failure mode: ``stop_reason`` says why, ``problem`` is the diagnosis.
    """

    def __init__(self, settings: Settings, lines: Sequence[Line], *, stop: bool):
        self.settings, self.lines, self.stop = settings, list(lines), stop
        self.fatal = {mode.name for mode in failure_modes(settings.method) if mode.fatal} | {WORSE_THAN_START}
        self.reported = {diagnosis.name for diagnosis in examine(self.lines, settings)}
        self.stop_reason: str | None = None
        self.problem: Diagnosis | None = None

    def look(self, line: Line) -> list[Diagnosis]:
        """The failure modes that this line shows for the first time."""
        self.lines.append(line)
        new = [diagnosis for diagnosis in examine(self.lines, self.settings) if diagnosis.name not in self.reported]
        self.reported |= {diagnosis.name for diagnosis in new}
        fatal = [diagnosis for diagnosis in new if diagnosis.name in self.fatal]
        if fatal and self.stop:
            self.problem = fatal[0]
            self.stop_reason = f"ended by the doctor (train.on_collapse): {fatal[0].name}"
        return new


def settings_of(values: Mapping[str, Mapping[str, Any]], images: int) -> Settings:
    """What failure modes need to know of a run, from the values of config.yaml, also of other versions.

    Parameters
    ----------
    images
        Number of images the run learns from.

    Raises
    ------
    KeyError, TypeError, ValueError
        Where needed values are missing.
    """
    train, optim = values["train"], values["optim"]
    method, micro_batch = str(train["method"]), int(train["batch"])
    names = {field.name for field in dataclasses.fields(Settings)}
    settings = {name: value for name, value in values[method].items() if name in names}
    card = card_of(method)
    settings |= {
        "method": method,
        "batch": micro_batch * int(train["accumulate"]),
        "micro_batch": micro_batch,
        "images": images,
        "steps": int(train["steps"]),
        "lr": float(optim["lr"]),
        "warmup_fraction": float(optim["warmup_fraction"]),
        "pretrained": bool(values.get("model", {}).get("weights")),
        "chance": card.chance_loss and card.chance_loss(card.config_from(values[method]), micro_batch),
    }
    return Settings(**settings)


DIAGNOSES = "doctor.json"


def save_diagnoses(run: Path) -> list[Diagnosis]:
    """Write RUN/doctor.json at the end of a training, so that readers need neither the method nor torch; returns it."""
    metrics = run / "metrics.jsonl"
    lines = run_folder.read_metrics(metrics) if metrics.exists() else []
    diagnoses = examine_run(run)
    rows = [dataclasses.asdict(diagnosis) for diagnosis in diagnoses]
    run_folder.write_json(run / DIAGNOSES, {"step": lines[-1]["step"] if lines else None, "diagnoses": rows})
    return diagnoses


def examine_run(run: Path) -> list[Diagnosis]:
    """What the doctor would have said of the logged figures of a run. Raises UsageError when the folder holds none."""
    run_folder.require_run(run)
    metrics = run / "metrics.jsonl"
    lines = run_folder.read_metrics(metrics) if metrics.exists() else []
    images = int(run_folder.read_json(run / "data.json")["used"])
    settings = settings_of(config.load(run / "config.yaml"), images)
    doctor = Doctor(settings, [], stop=False)
    diagnoses = [diagnosis for line in lines for diagnosis in doctor.look(line)]
    ended = bool(lines) and lines[-1]["step"] >= settings.steps
    return diagnoses + (examine_outcome(lines, settings) if ended else [])
