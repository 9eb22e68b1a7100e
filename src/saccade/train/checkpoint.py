"""Checkpoints: all that is state, written so that there is always a whole one to go back to."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from saccade.errors import StorageError, TrainingError

FILE = "state.pt"
BEST, SKIPPED = "best", "skipped"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def save(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``checkpoints/step-NNNNNN`` under a temporary name, flush, rename; then drop the oldest.

    Later ones are of a run that did not go on from here (they were damaged): they go first.
    Raises StorageError when the disk refuses; earlier checkpoints are untouched then.
    """
    final = folder_of(run, step)
    _write(final, state, f"checkpoint of step {step}", run)
    drop_from(run, step + 1)
    for old in available(run)[:-keep]:
        shutil.rmtree(folder_of(run, old), ignore_errors=True)
    return final


def _write(final: Path, state: dict[str, Any], what: str, run: Path) -> None:
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with (temporary / FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _flush_folder(final.parent)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{what} could not be written",
            got=str(error).splitlines()[0],
            hint=f"make room at {run}; the checkpoints before it are intact",
        ) from error


def save_named(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write ``checkpoints/NAME``: BEST, on the validation images, or SKIPPED, as it met a step that was left out.

    Raises StorageError.
    """
    _write(run / "checkpoints" / name, state, f"the {name} checkpoint", run)


def load_named(run: Path, name: str) -> dict[str, Any] | None:
    """The state ``save_named`` wrote; None where there is none."""
    path = run / "checkpoints" / name / FILE
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def _flush_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def available(run: Path) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)", p.name), p) for p in (run / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match, path in found if match and (path / FILE).exists())


def drop_from(run: Path, step: int) -> None:
    """Remove the checkpoints of this step and later: what led to them is not to be continued."""
    for later in (found for found in available(run) if found >= step):
        shutil.rmtree(folder_of(run, later), ignore_errors=True)


def load_newest(run: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest readable checkpoint and a message for each newer one that was damaged."""
    messages: list[str] = []
    for step in reversed(available(run)):
        try:
            state = torch.load(folder_of(run, step) / FILE, map_location="cpu", weights_only=True)
            return state, messages
        except Exception as error:  # torch raises nearly anything on foreign bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            messages.append(f"checkpoint of step {step} is damaged ({reason}); falling back to the one before")
    raise TrainingError(
        "no readable checkpoint",
        got=run / "checkpoints",
        hint="start again with a new --out; nothing to resume from",
    )
