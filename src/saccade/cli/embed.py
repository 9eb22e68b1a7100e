"""``saccade embed``: compute feature vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli.options import Data, Grey, KeepNa, LabelFlags, MaxBad, Model, TilingFlags
from saccade.cli.progress import ProgressBar


def embed(
    model: Model,
    data: Data,
    out: Annotated[
        str, typer.Option("--out", help="FILE.parquet or DATABASE/NAME.lance; for slides also FOLDER.h5 or FOLDER.")
    ],
    labels: LabelFlags,
    tiling: TilingFlags,
    keep_na: KeepNa = False,
    grey: Grey = False,
    max_bad: MaxBad = 0.05,
) -> None:
    """Compute one feature vector per image and write a table: Parquet, or LanceDB for large ones.

    For slides, one vector per tile: a table holds all of them; FOLDER.h5 holds one HDF5 file per slide (coords,
    features), as TRIDENT writes them. Up-to-date features are skipped.
    """
    from saccade import api
    from saccade.features.embed_slides import EmbeddedSlides
    from saccade.tasks.embed import LabelOptions

    columns = LabelOptions(labels=labels.labels, label=labels.label, group=labels.group, keep_na=keep_na)
    with ProgressBar() as bar:
        table = api.embed(
            model,
            data,
            out=out,
            grey=grey,
            max_bad=max_bad,
            labels=columns,
            tiling=tiling.tiling(),
            console=bar,
        )
    if isinstance(table, EmbeddedSlides):
        skipped = f" ({table.skipped:,} up to date)" if table.skipped else ""
        slides = "1 slide" if table.slides == 1 else f"{table.slides:,} slides"
        typer.echo(f"{out}: {slides}{skipped}, {table.tiles:,} tiles, {table.width} features")
        return
    typer.echo(f"{out}: {len(table):,} {table.about.get('rows', 'images')}, {table.features.shape[1]} features")
