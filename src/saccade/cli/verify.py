"""``saccade verify``: check the digests of what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import Json
from saccade.cli.progress import print_json


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a model folder, or a feature table.")],
    as_json: Json = False,
) -> None:
    """Compare checkpoints, models and feature tables with the SHA-256 recorded when they were written.

    Prints one line per file: intact, damaged, or no digest (written by version 0.1). The exit code is 1 where a file
    is damaged.
    """
    from saccade import api

    states = api.verify(path)
    if as_json:
        print_json(states)
    else:
        typer.echo("\n".join(f"{state:9s}  {name}" for name, state in states.items()))
    if "damaged" in states.values():
        raise typer.Exit(1)
