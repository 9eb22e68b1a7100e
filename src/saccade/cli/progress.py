"""What a command prints: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import typer

from saccade.base import run_folder

LINE_SECONDS = 20.0
"""Interval of the plain progress lines where stderr is not a terminal."""


class ProgressBar:
    """Progress on stderr: a bar with images/s and time left, and messages above it; plain lines in a pipe or file."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=False,
        )
        self.tasks: dict[int, Any] = {}
        self.last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False)

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        stage, figures = _stage(logs), _figures(logs)
        key = hash((stage, total))
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(f"{stage:8s}", total=total, figures="")
        self.bar.update(self.tasks[key], completed=step, figures=figures)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self.say(f"{stage}: {step:,} of {total:,}" + (f", {figures}" if figures else ""))


def _stage(logs: Mapping[str, float]) -> str:
    """What is counted, from the figures that come with it."""
    stages = {"loss": "training", "failed": "trials", "folds": "folds", "features": "features"}
    return next((stage for name, stage in stages.items() if name in logs), "trials" if logs else "reading")


def _figures(logs: Mapping[str, float]) -> str:
    if "failed" in logs:
        return f"{logs['failed']:.0f} failed"
    speed = f"{logs['images_per_second']:.0f} images/s" if "images_per_second" in logs else ""
    loss = f"loss {logs['loss']:.3f}" if "loss" in logs else ""
    return "  ".join(filter(None, (speed, loss)))


def is_first_process() -> bool:
    """Whether this process prints: the only one, or rank 0 of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: object) -> None:
    typer.echo(json.dumps(run_folder.finite(value), indent=1, ensure_ascii=False, allow_nan=False))
