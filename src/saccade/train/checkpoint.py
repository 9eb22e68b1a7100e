"""Checkpoints: all that is state, written so that there is always a whole one to go back to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from saccade.base.files import atomic_folder
from saccade.errors import StorageError, TrainingError, first_line

FILE = "state.pt"
BEST, SKIPPED = "best", "skipped"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def save(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``checkpoints/step-NNNNNN``, then remove the oldest.

    Later ones are of a run that did not go on from here (they were damaged): they go first.
    Raises StorageError when the disk refuses; earlier checkpoints are untouched then.
    """
    final = folder_of(run, step)
    _write(final, state, f"checkpoint of step {step}")
    drop_from(run, step + 1)
    for old in available(run)[:-keep]:
        shutil.rmtree(folder_of(run, old), ignore_errors=True)
    return final


def _write(folder: Path, state: dict[str, Any], name: str) -> None:
    try:
        with atomic_folder(folder) as temporary, (temporary / FILE).open("wb") as file:
            torch.save(state, file)
    except (StorageError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = error.got if isinstance(error, StorageError) else first_line(error)
        raise StorageError(
            f"{name} could not be written",
            got=reason,
            hint=f"free some space at {folder}; earlier checkpoints are intact",
        ) from error


def save_named(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write ``checkpoints/NAME``: BEST, on the validation images, or SKIPPED, as it met a step that was left out.

    Raises StorageError.
    """
    _write(run / "checkpoints" / name, state, f"the {name} checkpoint")


def load_named(run: Path, name: str) -> dict[str, Any] | None:
    """The state ``save_named`` wrote; None where there is none."""
    path = run / "checkpoints" / name / FILE
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


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


def load_newest(run: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest readable checkpoint and a message for each newer one that was damaged."""
    messages: list[str] = []
    for step in reversed(available(run)):
        try:
            state = torch.load(folder_of(run, step) / FILE, map_location="cpu", weights_only=True)
            return state, messages
        except Exception as error:  # torch raises nearly anything on foreign bytes
            messages.append(f"checkpoint of step {step} is damaged ({first_line(error)}); using the one before")
    raise TrainingError(
        "no readable checkpoint",
        got=run / "checkpoints",
        hint="start again with a new --out; nothing to resume from",
    )
