"""``saccade evaluate``: few-label evaluation of frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import AllowOverlap, Grey, Json, KeepNa, LabelFlags, MaxBad, TilingFlags, split_floats
from saccade.cli.progress import ProgressBar, print_json
from saccade.errors import UsageError


def evaluate(
    models_and_data: Annotated[
        list[str], typer.Argument(metavar="MODEL... DATA", help="One or more models, then the images.")
    ],
    labels: LabelFlags,
    tiling: TilingFlags,
    fractions: Annotated[str, typer.Option("--fractions", help="Label fractions, separated by commas.")] = "1,0.1,0.01",
    repeats: Annotated[int, typer.Option("--repeats", help="Draws per label fraction below 1.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for evaluation.json, .csv and .md (default: the run's own).")
    ] = None,
    keep_na: KeepNa = False,
    grey: Grey = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Add random weights, raw pixels and a color histogram."),
    ] = True,
    masks: Annotated[
        str | None,
        typer.Option(
            "--masks",
            metavar="FOLDER|auto",
            help="Also compare the attention with the masks of a folder, or auto: those recognised beside the images.",
        ),
    ] = None,
    allow_overlap: AllowOverlap = False,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
) -> None:
    """Evaluate frozen features by k-NN and logistic regression at 100, 10 and 1 % of the labels.

    The table has 95 % intervals and baselines. For slides every tile is an image, and all tiles of a slide (or of a
    --group) are in the same split.
    """
    from saccade import api
    from saccade.evaluation.protocol import ProtocolConfig
    from saccade.evaluation.tables import to_text
    from saccade.tasks.evaluate import EvaluateOptions

    if len(models_and_data) < 2:
        raise UsageError("evaluate takes one or more MODELs and then DATA", got=" ".join(models_and_data))
    *models, data = models_and_data
    options = EvaluateOptions(
        labels=labels.labels,
        label=labels.label,
        group=labels.group,
        keep_na=keep_na,
        grey=grey,
        baselines=baselines,
        masks=masks,
        allow_overlap=allow_overlap,
        max_bad=max_bad,
        tiling=tiling.tiling(),
        protocol=ProtocolConfig(fractions=split_floats("--fractions", fractions), repeats=repeats, seed=seed),
    )
    with ProgressBar() as bar:
        result = api.evaluate(models, data, options=options, out=out, console=bar)
    print_json(result.to_dict()) if as_json else typer.echo(to_text(result))
