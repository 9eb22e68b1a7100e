"""Checkpoints: all that is state, written so that there is always a whole one to go back to.

Beside each ``state.pt`` lies ``digests.json`` with its SHA-256, the run and the step. A checkpoint is used only where
all of that agrees, every value is finite, and method and optimiser accept it; otherwise the one before is tried.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from saccade.base.digests import FILE as DIGESTS
from saccade.base.digests import damaged_files, read_digests, write_digests
from saccade.base.files import atomic_folder, free_space
from saccade.base.run_folder import read_json, read_metrics
from saccade.errors import DamagedFile, SaccadeError, StorageError, TrainingError, first_line

FILE = "state.pt"
BEST, SKIPPED = "best", "skipped"
KEYS = ("step", "method", "optimizer")


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def run_id(run: Path) -> str | None:
    """The identifier in env.json of a run; None for runs of version 0.1."""
    path = run / "env.json"
    return read_json(path).get("id") if path.exists() else None


# --- writing ------------------------------------------------------------------------------------


def save(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``checkpoints/step-NNNNNN``, then remove the oldest.

    Later ones are of a run that did not go on from here (they were damaged): they go first.
    Raises StorageError when the disk refuses; earlier checkpoints are untouched then.
    """
    final = folder_of(run, step)
    _write(run, final, state, f"checkpoint of step {step}", step)
    drop_from(run, step + 1)
    for old in available(run)[:-keep]:
        shutil.rmtree(folder_of(run, old), ignore_errors=True)
    return final


def _write(run: Path, folder: Path, state: dict[str, Any], name: str, step: int | None) -> None:
    try:
        with atomic_folder(folder) as temporary:
            with (temporary / FILE).open("wb") as file:
                torch.save(state, file)
            write_digests(temporary, run=run_id(run), step=step)
    except (StorageError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        steps = available(run)
        rest = f"the checkpoint of step {steps[-1]} is still there" if steps else "there is no earlier checkpoint"
        raise StorageError(
            f"{name} could not be written to {folder}", got=_reason(error), hint=f"{free_space(folder)}; {rest}"
        ) from error


def _reason(error: BaseException) -> str:
    """Why the disk refused. torch closes its archive after a failed write, and only that second error arrives."""
    if isinstance(error, StorageError):
        return str(error.got)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "not all bytes were written, as on a full disk"


def save_named(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write ``checkpoints/NAME``: BEST, on the validation images, or SKIPPED, as it met a step that was left out.

    Raises StorageError.
    """
    _write(run, run / "checkpoints" / name, state, f"the {name} checkpoint", state.get("step"))


# --- reading ------------------------------------------------------------------------------------


def load_named(run: Path, name: str, say: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """The state ``save_named`` wrote; None where there is none.

    A damaged one is reported to ``say`` and None is returned; without ``say`` it raises TrainingError.
    """
    folder = run / "checkpoints" / name
    if not (folder / FILE).exists():
        return None
    try:
        return _read(folder, run_id(run))
    except Exception as error:  # torch raises nearly anything on foreign bytes
        if say is None:
            raise TrainingError(f"{folder / FILE} is damaged", got=_in_short(error)) from error
        say(f"{folder / FILE} is damaged ({_in_short(error)}) and is not used")
        return None


def _read(folder: Path, run: str | None) -> dict[str, Any]:
    """The state in a folder whose digest and run are right. Raises DamagedFile, and whatever torch raises."""
    digests = read_digests(folder)
    if digests is None and run is not None:
        raise DamagedFile("its digests.json is missing")
    if digests is not None:
        if damaged_files(folder, digests) or FILE not in digests.files:
            raise DamagedFile("its SHA-256 is not the recorded one")
        if run is not None and digests.about.get("run") != run:
            raise DamagedFile("it belongs to another run")
    state = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise DamagedFile("it does not contain the state of a run", got=type(state).__name__)
    return state


def available(run: Path) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    matches = (re.fullmatch(r"step-(\d+)", folder.name) for folder in folders if (folder / FILE).exists())
    return sorted(int(match[1]) for match in matches if match)


def drop_from(run: Path, step: int) -> None:
    """Remove the checkpoints of this step and later ones."""
    for later in available(run):
        if later >= step:
            shutil.rmtree(folder_of(run, later), ignore_errors=True)


def load_newest(
    run: Path, accept: Callable[[dict[str, Any]], object] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint that can be used, and a message for each newer one that cannot.

    Parameters
    ----------
    run
        Folder of the run.
    accept
        Loads the state into its owners; an exception means that it does not fit, and the checkpoint before is tried.

    Raises
    ------
    TrainingError
        No checkpoint can be used.
    """
    messages: list[str] = []
    identifier = run_id(run)
    for step in reversed(available(run)):
        folder = folder_of(run, step)
        try:
            state = _read(folder, identifier)
            _check(state, step)
            if accept is not None:
                accept(state)
        except Exception as error:  # torch raises nearly anything on foreign bytes
            messages.append(f"checkpoint of step {step} is damaged ({_in_short(error)}); using the one before")
            continue
        if not (folder / DIGESTS).exists():
            messages.append(f"checkpoint of step {step} has no SHA-256 (it was written by version 0.1)")
        return state, messages
    raise TrainingError(
        "no readable checkpoint",
        got="; ".join([str(run / "checkpoints"), *(message.partition("; using")[0] for message in messages)]),
        hint="start again with a new --out; nothing to resume from",
    )


def restore(
    run: Path, method: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float], list[str]]:
    """Load the newest checkpoint that fits into method and optimiser.

    Returns its step, the state of the clock (empty for runs of ``--steps``) and messages as ``load_newest``; raises
    TrainingError.
    """

    def load(state: dict[str, Any]) -> None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        for parameter, values in optimizer.state.items():  # torch does not compare their shapes
            for name, value in values.items():
                if torch.is_tensor(value) and value.ndim and value.shape != parameter.shape:
                    raise DamagedFile(f"{name} of the optimiser does not fit its parameter")

    state, messages = load_newest(run, load)
    return int(state["step"]), dict(state.get("clock", {})), messages


def check_never_saved(run: Path, save_every: int) -> None:
    """Raise TrainingError where a run without checkpoints must have had some: it cannot continue from step 0."""
    metrics = run / "metrics.jsonl"
    last = max((int(line["step"]) for line in read_metrics(metrics)), default=0) if metrics.exists() else 0
    if last >= save_every or any((run / "checkpoints").glob("step-*")) or (run / "model").exists():
        raise TrainingError(
            "the checkpoints of this run are missing",
            got=f"none in {run / 'checkpoints'}; metrics.jsonl goes to step {last}",
            expected="step-NNNNNN/state.pt",
            hint="restore them from a copy, or start again with a new --out",
        )


def _check(state: Mapping[str, Any], step: int) -> None:
    """Raise DamagedFile unless a state has its keys, its step and finite values."""
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise DamagedFile(f"it has no {' and no '.join(missing)}")
    if state["step"] != step:
        raise DamagedFile(f"it holds step {state['step']}")
    name = _not_finite(state, "")
    if name is not None:
        raise DamagedFile(f"{name} has values that are not finite")


def _not_finite(value: Any, name: str) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    if torch.is_tensor(value):
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        return None if finite else name
    if isinstance(value, Mapping):
        names = (_not_finite(inner, f"{name}.{key}".lstrip(".")) for key, inner in value.items())
        return next((name for name in names if name is not None), None)
    return None


def _in_short(error: Exception) -> str:
    return error.in_one_line() if isinstance(error, SaccadeError) else first_line(error)
