"""``saccade search``: nearest neighbours in a feature table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import Json, Model
from saccade.cli.progress import ProgressBar, print_json


def search(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="One image file; for a hierarchy one slide.")],
    store: Annotated[str, typer.Option("--in", help="Feature table written by saccade embed with the same model.")],
    k: Annotated[int, typer.Option("--k", help="Number of neighbours.")] = 10,
    where: Annotated[
        str, typer.Option("--where", help="Filter, e.g. label=a,b split=train group!=7 'other column'=x.")
    ] = "",
    approximate: Annotated[
        bool | None,
        typer.Option("--approximate/--exact", help="Use the index of a LanceDB table (default: above a million rows)."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Current location of the images, if moved.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a contact sheet of the neighbours (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """Search a feature table for the images most similar to a query image, and predict its label by their vote."""
    from saccade import api
    from saccade.base.files import check_writable
    from saccade.tasks.search import SearchOptions

    options = SearchOptions(k=k, where=where, approximate=approximate, data=data)
    if out is not None:
        check_writable(out)
    with ProgressBar() as bar:
        result = api.search(model, image, store=store, options=options, console=bar)
    warnings = result.save_sheet(out) if out else []
    print_json(result.to_dict() | {"sheet": str(out) if out else None}) if as_json else typer.echo(result.text())
    for warning in warnings:
        typer.echo(warning, err=True)
