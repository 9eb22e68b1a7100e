"""The command that says what a run costs: plan. Heavy imports happen inside."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli.options import Batch, Json, Mpp, Set, Size, SlideMpp, Tile, Tissue, given_settings, print_json


def plan(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Images, volumes or slides; none: 1,000 images are assumed.")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="As in pretrain.")] = None,
    size: Size = None,
    method: Annotated[str, typer.Option("--method", help="As in pretrain.")] = "dino",
    batch: Batch = None,
    recipe: Annotated[str, typer.Option("--recipe", help="As in pretrain.")] = "microscopy",
    memory: Annotated[
        str | None, typer.Option("--memory", help="What may be used, e.g. 12GB; else what is free here.")
    ] = None,
    attention: Annotated[
        str,
        typer.Option("--attention", help="A pattern (window:7, axial, ...), or explicit (written out), or fused."),
    ] = "",
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or fp32.")] = None,
    axes: Annotated[int, typer.Option("--axes", help="2 or 3, where no DATA say it.")] = 2,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    measure: Annotated[bool, typer.Option(help="Time some small steps on this machine.")] = True,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """What a run would cost: tokens, operations, memory, time, disk, and what would be cheaper. Nothing is trained."""
    from saccade import api
    from saccade.cost.system_memory import parse_size
    from saccade.tasks.plan import PlanOptions

    named: dict[str, object] = {"model.size_px": size, "train.batch": batch, "train.precision": precision}
    cut = {"data.mpp": mpp, "data.tile_px": tile, "data.tissue": tissue, "data.slide_mpp": slide_mpp}
    settings = given_settings(named | cut, set_)
    limit = None if memory is None else parse_size(memory)
    options = PlanOptions(memory=limit, attention=attention, measure=measure, axes=axes)
    found = api.plan(data, method=method, backbone=backbone, recipe=recipe, settings=settings, options=options)
    print_json(found.to_dict()) if as_json else typer.echo(found.text())
