"""What a run prints before its first step, and its env.json."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saccade import runtime
from saccade.base import config
from saccade.base.places import without_folders
from saccade.models.backbones.weights import file_fingerprint
from saccade.train.run_config import ResolvedRun, RunConfig


def _git_commit() -> str | None:
    """Commit of saccade's own checkout, where it runs from one."""
    try:
        result = subprocess.run(
            ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _command(words: Sequence[str]) -> str:
    return shlex.join([Path(words[0]).name, *map(without_folders, words[1:])])


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Versions, device, threads, seed, command and commit, as in env.json."""
    facts = {"id": secrets.token_hex(8), "seed": seed, "command": _command(sys.argv), "git": _git_commit()}
    return runtime.environment(device) | facts


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value)} numbers]"
    return json.dumps(value) if isinstance(value, (list, Mapping)) else str(value)


def settings_table(run: ResolvedRun, images: int) -> str:
    """Every setting, one line per section; printed before the first step."""
    lines = [f"settings, resolved for {images:,} images"]
    for name, values in config.to_dict(run).items():
        text = ", ".join(f"{key}={_short(value)}" for key, value in values.items() if value not in ("", None, []))
        lines.append(f"  {name:7s} {text}")
    return "\n".join(lines)


def describe_start(run: RunConfig) -> str:
    """Where the weights of a run come from; always printed, because random weights look like any others."""
    weights = run.model.weights
    if not weights:
        return f"starting from random weights (seed {run.train.seed})"
    return f"starting pretrained from {_last_parts(weights)} ({file_fingerprint(weights)})"


def _last_parts(weights: str) -> str:
    """The base name of weights, with that of the run where they are a part of one."""
    path = Path(weights)
    if not path.is_absolute():
        return weights
    inside = 1 + (path.name == "model") + 2 * (path.parent.name == "model")
    return "/".join(path.parts[-inside:])


def describe_length(run: ResolvedRun, used_seconds: float) -> str:
    """How the minutes of a run are spent."""
    total = 60 * run.train.minutes
    return (
        f"{run.train.minutes:g} minutes in all: {used_seconds:.0f} s of start-up are over, the run trains until about "
        f"{max(0.0, total - used_seconds):.0f} s from now, evaluation and report included; about "
        f"{run.train.steps:,} steps if the machine stays as fast as it is"
    )
