"""``saccade report``: write the HTML report of a run or study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import refuse, split_words


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, of a study, or of slide heads.")],
    interactive: Annotated[
        Path | None,
        typer.Option("--interactive", metavar="FILE.html", help="Write the attention explorer to this file instead."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", help="Images of the explorer, separated by commas (default: a few of each class)."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Their shorter side in pixels (default: input size of the model).")
    ] = None,
) -> None:
    """Write the HTML report of a run or study, also while it is running; one self-contained file.

    --interactive writes the attention explorer for selected images as one file that works without a server: every
    patch, layer and head, next to the same network with random weights. For supplements and lectures.
    """
    from saccade import api

    if interactive is not None:
        path, note = api.report_interactive(run, interactive, images=split_words(images or ""), size_px=size)
        typer.echo(f"{note}\n{path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return
    refuse({"--images": images, "--size": size}, "without --interactive")
    typer.echo(api.report(run))
