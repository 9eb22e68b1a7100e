"""``saccade show``: describe a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import Data, Group, Json, KeepNa, MaxBad, TilingFlags
from saccade.cli.progress import print_json


def show(
    data: Data,
    tiling: TilingFlags,
    group: Group = None,
    keep_na: KeepNa = False,
    max_bad: MaxBad = 0.05,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a data set: counts, sizes, bit depth, labels, groups, damaged and duplicate files; for slides also
    tissue and tiles."""
    from saccade.api import show as run
    from saccade.data.audit.images import Audit, render

    audit = run(data, group=group, keep_na=keep_na, max_bad=max_bad, sheet=sheet, tiling=tiling.tiling())
    if as_json:
        print_json(audit.to_dict())
    else:
        typer.echo(render(audit) if isinstance(audit, Audit) else audit.text())
