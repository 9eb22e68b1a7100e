"""``saccade view``: the local web page."""

from __future__ import annotations

from typing import Annotated

import typer


def view(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN ...]", help="Runs or other MODELs (default: all runs below the current folder)."),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option("--store", help="Feature table for the map, in addition to RUN/features.parquet; repeatable."),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; other than 127.0.0.1, other machines can connect."),
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option("--port", help="Port (default: 8420, or a free one).")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Open runs in a local web page: attention of any patch, layer and head, live curves, tables."""
    from saccade.errors import require

    require("fastapi", "web", "saccade view")
    require("uvicorn", "web", "saccade view")
    from saccade.web.start import view as run

    run(runs or [], stores=store or [], host=host, port=port, open_browser=not no_open, say=typer.echo)
