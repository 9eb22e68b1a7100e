"""``saccade pretrain``: self-supervised pretraining."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.interruptions import Interruptions
from saccade.cli.options import (
    Backbone,
    Group,
    Method,
    NewRun,
    OptionalData,
    Recipe,
    SettingsFlags,
    TilingFlags,
    TrainingFlags,
)
from saccade.cli.progress import ProgressBar, is_first_process
from saccade.cli.settings import request_run


@dataclasses.dataclass(frozen=True)
class PretrainingFlags:
    """Settings of a run on unlabelled images that only this command has."""

    size_mm: Annotated[
        float | None,
        typer.Option("--size-mm", help="Volumes: edge length in mm of the cube each view is cropped from."),
    ] = None
    weights: Annotated[str | None, typer.Option("--weights", metavar="MODEL", help="Start from this model.")] = None
    on_collapse: Annotated[
        str | None,
        typer.Option(
            "--on-collapse",
            help="When training collapses: warn, stop, or repair (restore, change a setting, continue).",
        ),
    ] = None
    moved: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="With --resume: where the images lie now.")
    ] = None
    group: Group = None
    max_bad: Annotated[
        float | None,
        typer.Option("--max-bad", help="Largest fraction of damaged files that is tolerated (default 0.05)."),
    ] = None

    def settings(self) -> dict[str, object]:
        return {
            "data.size_mm": self.size_mm,
            "model.weights": self.weights,
            "train.on_collapse": self.on_collapse,
            "data.group": self.group,
            "data.max_bad": self.max_bad,
        }


def pretrain(
    out: NewRun,
    training: TrainingFlags,
    tiling: TilingFlags,
    pretraining: PretrainingFlags,
    flags: SettingsFlags,
    data: OptionalData = None,
    method: Method = None,
    backbone: Backbone = None,
    recipe: Recipe = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Pretrain a backbone on images without labels. Settings left open are derived from the data and printed.

    SIGINT (Ctrl-C) and SIGTERM save and stop; the exit code is then 130 or 143. SIGUSR1 saves and training continues.
    """
    started = time.monotonic()  # the minutes of a run count the imports
    from saccade import api
    from saccade.errors import UsageError

    if pretraining.moved is not None and (data is not None or not resume):
        raise UsageError("--data goes with --resume", hint="saccade pretrain DATA --out RUN")
    options = training.settings() | tiling.settings() | pretraining.settings()
    request = request_run(data or pretraining.moved, method, backbone, recipe, flags, options)
    with Interruptions() as interruptions, ProgressBar() as bar:
        if resume:
            settings = request.settings | ({} if backbone is None else {"model.backbone": backbone})
            folder = api.resume(out, data=request.data, settings=settings, console=bar)
        elif request.data is None:
            raise UsageError("pretrain needs DATA", hint="saccade pretrain FOLDER --out RUN")
        else:
            folder = api.pretrain(
                request.data,
                out=out,
                method=request.method,
                backbone=request.backbone,
                recipe=request.recipe,
                settings=request.settings,
                console=bar,
                started=started,
            )
    if is_first_process():
        typer.echo(str(folder) if interruptions.signals else f"{folder}\nnext: {_next_command(folder)}")
    interruptions.check()


def _next_command(run: Path) -> str:
    from saccade.hierarchy.settings import is_hierarchy

    if is_hierarchy(run):
        return f"saccade attend {run} SLIDE --out DIR, or saccade finetune {run} LABELLED --out DIR"
    return f"saccade evaluate {run} DATA"
