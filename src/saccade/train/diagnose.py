"""What is wrong with a run, from its logged figures alone: live in the loop, or afterwards from metrics.jsonl.

Each failure mode has to hold for a stretch after the warm-up: 100 steps, or a fifth of a run shorter than 500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from saccade.base import config, run_folder
from saccade.methods.diagnosis import Diagnosis, FailureMode, Line, Settings
from saccade.methods.registry import card_of
from saccade.train.failure_modes import FAILURE_MODES, worse_than_start

HOLD = 100
MEMORY = 1000  # lines that are looked at, so that a long run is examined as quickly as a short one
WORSE_THAN_START = "features worse than at the start"


def failure_modes(method: str) -> tuple[FailureMode, ...]:
    """Of a run by this method, the most severe first."""
    diverged, same_vector, *others = FAILURE_MODES
    own = card_of(method).failure_modes
    fatal = (diverged, same_vector, *(mode for mode in own if mode.fatal), *(mode for mode in others if mode.fatal))
    return fatal + tuple(mode for mode in (*own, *others) if not mode.fatal)


def examine(lines: Sequence[Line], settings: Settings) -> list[Diagnosis]:
    """What is wrong at the last of these lines: one diagnosis per failure mode, the most severe first.

    lines   of metrics.jsonl in the order of their steps
    """
    first = next((line for line in lines if "rank" in line), None)
    lines = lines[-MEMORY:]
    worse = worse_than_start(first, lines, settings)
    told = [worse] if worse is not None else []
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
        return told
    diagnoses = (mode.detect(stretch, lines, settings) for mode in failure_modes(settings.method))
    return told + [diagnosis for diagnosis in diagnoses if diagnosis is not None]


class Doctor:
    """Looks at a run while it goes, and says each illness once.

    stop   end the run where it learns nothing any more: ``finished`` says why, ``ill`` is what it has
    """

    def __init__(self, settings: Settings, lines: Sequence[Line], *, stop: bool):
        self.settings, self.lines, self.stop = settings, list(lines), stop
        self.fatal = {mode.name for mode in failure_modes(settings.method) if mode.fatal} | {WORSE_THAN_START}
        self.known = {one.name for one in examine(self.lines, settings)}
        self.finished: str | None = None
        self.ill: Diagnosis | None = None

    def look(self, line: Line) -> list[Diagnosis]:
        """What is wrong from this line on that was not said before."""
        self.lines.append(line)
        found = [one for one in examine(self.lines, self.settings) if one.name not in self.known]
        self.known |= {one.name for one in found}
        fatal = [one for one in found if one.name in self.fatal]
        if fatal and self.stop:
            self.ill, self.finished = fatal[0], f"ended by the doctor (train.on_collapse): {fatal[0].name}"
        return found


def settings_of(values: Mapping[str, Mapping[str, object]], images: int) -> Settings:
    """From the values of config.yaml. ``images``: that the run learns from."""
    train, optim = values["train"], values["optim"]
    method = str(train["method"])
    card = card_of(method)
    here = {"method", "batch", "micro_batch", "images", "steps", "lr", "chance"}
    known = {field.name for field in dataclasses.fields(Settings)} - here
    own = {name: value for name, value in values[method].items() if name in known}
    own["pretrained"] = bool(values.get("model", {}).get("weights"))
    micro_batch = int(train["batch"])  # type: ignore[call-overload]
    own["chance"] = card.chance_loss and card.chance_loss(card.config_from(values[method]), micro_batch)
    return Settings(
        method,
        micro_batch * int(train["accumulate"]),  # type: ignore[call-overload]
        images,
        int(train["steps"]),  # type: ignore[call-overload]
        float(optim["lr"]),  # type: ignore[arg-type]
        float(optim["warmup_fraction"]),  # type: ignore[arg-type]
        micro_batch=micro_batch,
        **own,  # type: ignore[arg-type]
    )


def examine_run(run: Path) -> list[Diagnosis]:
    """What the doctor would have said of the logged figures of a run. Raises UsageError when the folder holds none."""
    run_folder.require_run(run)
    metrics = run / "metrics.jsonl"
    known = run_folder.read_metrics(metrics) if metrics.exists() else []
    values, data = config.load(run / "config.yaml"), run_folder.read_json(run / "data.json")
    watch = Doctor(settings_of(values, int(data["used"])), [], stop=False)
    return [one for line in known for one in watch.look(line)]
