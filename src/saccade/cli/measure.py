"""Commands about models and their vectors: embed, evaluate, export. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import (
    Bar,
    Data,
    Grey,
    Group,
    Json,
    Label,
    Labels,
    MaxBad,
    Model,
    Mpp,
    SlideMpp,
    Tile,
    Tissue,
    print_json,
)


def embed(
    model: Model,
    data: Data,
    out: Annotated[
        str, typer.Option("--out", help="FILE.parquet, DATABASE/NAME.lance; of tiles also FOLDER.h5, FOLDER.")
    ] = ...,  # type: ignore[assignment]
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    grey: Grey = False,
    max_bad: MaxBad = 0.05,
) -> None:
    """One feature vector an image, in a table: Parquet, or LanceDB for many.

    Of slides one a tile: a table has all, FOLDER.h5 a file a slide (coords, features), as TRIDENT has them. Features
    of the same slides, tiles and weights that are there already are left as they are.
    """
    from saccade import api
    from saccade.data.slides.tiling import Tiling
    from saccade.features.embed_slides import Embedded
    from saccade.tasks.embed import Described

    described = Described(labels=labels, label=label, group=group)
    tiling = Tiling(mpp, tile, tissue, slide_mpp)
    with Bar() as bar:
        table = api.embed(
            model, data, out=out, grey=grey, max_bad=max_bad, described=described, tiling=tiling, console=bar
        )
    if isinstance(table, Embedded):
        kept = f" ({table.kept:,} were there)" if table.kept else ""
        slides = "1 slide" if table.slides == 1 else f"{table.slides:,} slides"
        typer.echo(f"{out}: {slides}{kept}, {table.tiles:,} tiles, {table.width} features")
        return
    typer.echo(f"{out}: {len(table):,} {table.about.get('rows', 'images')}, {table.features.shape[1]} features")


def evaluate(
    models_and_data: Annotated[list[str], typer.Argument(metavar="MODEL... DATA", help="Models, then the images.")],
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    fractions: Annotated[str, typer.Option(help="Fractions of the labels to use.")] = "1,0.1,0.01",
    repeats: Annotated[int, typer.Option(help="Draws at each fraction below 1.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for evaluation.json, .csv, .md.")] = None,
    grey: Grey = False,
    baselines: Annotated[bool, typer.Option(help="Random weights, raw pixels, colour histogram.")] = True,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", help="Measure although test images were seen; every number is marked."),
    ] = False,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
) -> None:
    """k-NN and logistic regression at 100, 10 and 1 % of the labels, with intervals and baselines.

    Of slides every tile is an image, and a slide (or --group) stays whole in one part.
    """
    from saccade import api
    from saccade.data.slides.tiling import Tiling
    from saccade.errors import UsageError
    from saccade.evaluation.protocol import ProtocolConfig
    from saccade.evaluation.tables import to_text
    from saccade.tasks.evaluate import EvaluateOptions

    if len(models_and_data) < 2:
        raise UsageError("evaluate takes one or more MODELs and then DATA", got=" ".join(models_and_data))
    *models, data = models_and_data
    try:
        parts = tuple(float(word) for word in fractions.split(","))
    except ValueError:
        raise UsageError("--fractions takes numbers", got=fractions, expected="for example 1,0.1,0.01") from None
    options = EvaluateOptions(
        labels=labels,
        label=label,
        group=group,
        grey=grey,
        baselines=baselines,
        allow_overlap=allow_overlap,
        max_bad=max_bad,
        tiling=Tiling(mpp, tile, tissue, slide_mpp),
        protocol=ProtocolConfig(fractions=parts, repeats=repeats, seed=seed),
    )
    with Bar() as bar:
        found = api.evaluate(models, data, options=options, out=out, console=bar)
    print_json(found.to_dict()) if as_json else typer.echo(to_text(found))


def export(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="timm, hf (transformers), onnx or safetensors.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("--out", help="New folder.")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """A model for other programs. It is read back there and compared; what has no counterpart is refused."""
    from saccade.api import export as run

    difference = run(model, to=to, out=out)
    if as_json:
        print_json({"model": model, "to": to, "out": str(out), "difference": difference})
        return
    said = "not read back: the other program is not installed" if difference is None else f"differs by {difference:.1g}"
    typer.echo(f"{out}: {to}, {said}")
