"""What the commands share: arguments that mean the same everywhere, the progress bar, results as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.base import run_folder

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Images: folder, archive, .npz, manifest, slides, synthetic:tissue.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, weights file, random:NAME or timm:NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Grey = Annotated[bool, typer.Option("--grey", help="Show the images without colour.")]
MaxBad = Annotated[float, typer.Option("--max-bad", help="Stop when a larger fraction of the files is damaged.")]
Group = Annotated[str | None, typer.Option("--group", help="Column that names patient, slide or source tile.")]

Mpp = Annotated[float | None, typer.Option("--mpp", help="Slides: micrometres a pixel of the tiles; 0.5 unless given.")]
Tile = Annotated[int | None, typer.Option("--tile", help="Slides: side of a tile in pixels; 256 unless given.")]
Tissue = Annotated[float | None, typer.Option("--tissue", help="Slides: least share of tissue in a tile; 0.5.")]
SlideMpp = Annotated[
    float | None, typer.Option("--slide-mpp", help="Micrometres a pixel of slides whose files do not say.")
]

Labels = Annotated[Path | None, typer.Option("--labels", help="CSV or Parquet with path,label,split,group.")]
Label = Annotated[str | None, typer.Option("--label", help="Column that names the class.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of config.yaml.")]

NewRun = Annotated[Path, typer.Option("--out", help="New folder for the run.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the network's input in pixels.")]
Minutes = Annotated[float | None, typer.Option(help="Length by the clock, turned into steps at the start.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Images a micro-batch.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same run; 0 unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]


def given_settings(options: Mapping[str, object], pairs: Sequence[str] | None) -> dict[str, Any]:
    """Settings by their dotted names: the options that were given (None: were not), then what --set says."""
    from saccade.base.config import split_pair

    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    return given | dict(split_pair(pair) for pair in pairs or [])


LINE_SECONDS = 20.0
"""Where there is no terminal, a plain line of progress this often at most."""


class Bar:
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
        self.said = time.monotonic()

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False)

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        kind, figures = _kind(logs), _figures(logs)
        key = hash((kind, total))
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(f"{kind:8s}", total=total, figures="")
        self.bar.update(self.tasks[key], completed=step, figures=figures)
        if not self.console.is_terminal and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            self.say(f"{kind}: {step:,} of {total:,}" + (f", {figures}" if figures else ""))


def _kind(logs: Mapping[str, float]) -> str:
    """What is counted, from the figures that come with it."""
    kinds = {"loss": "training", "failed": "cells", "folds": "folds", "features": "features"}
    return next((kind for name, kind in kinds.items() if name in logs), "cells" if logs else "reading")


def _figures(logs: Mapping[str, float]) -> str:
    if "failed" in logs:
        return f"{logs['failed']:.0f} failed"
    speed = f"{logs['images_per_second']:.0f} images/s" if "images_per_second" in logs else ""
    loss = f"loss {logs['loss']:.3f}" if "loss" in logs else ""
    return "  ".join(filter(None, (speed, loss)))


def first_process() -> bool:
    """Whether this process talks: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: object) -> None:
    typer.echo(json.dumps(run_folder.finite(value), indent=1, ensure_ascii=False, allow_nan=False))
