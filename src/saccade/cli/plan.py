"""``saccade plan``: estimate the cost of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli.options import Backbone, Batch, Json, Method, OptionalData, Recipe, SettingsFlags, Size, TilingFlags
from saccade.cli.progress import print_json
from saccade.cli.settings import request_run


def plan(
    tiling: TilingFlags,
    flags: SettingsFlags,
    data: OptionalData = None,
    method: Method = None,
    backbone: Backbone = None,
    recipe: Recipe = None,
    size: Size = None,
    batch: Batch = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory limit, e.g. 12GB (default: free memory of this machine).")
    ] = None,
    attention: Annotated[
        str,
        typer.Option("--attention", help="Attention pattern (window:7, axial, ...), or explicit or fused attention."),
    ] = "",
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or fp32.")] = None,
    axes: Annotated[int, typer.Option("--axes", help="Spatial dimensions without DATA: 2 or 3.")] = 2,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time a few training steps on this machine.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Estimate the cost of a run before it starts: tokens, operations, memory, time, disk, and cheaper alternatives.

    Without DATA, 1,000 images are assumed.
    """
    from saccade import api
    from saccade.cost.system_memory import parse_size
    from saccade.tasks.plan import PlanOptions

    options = {"model.size_px": size, "train.batch": batch, "train.precision": precision} | tiling.settings()
    request = request_run(data, method, backbone, recipe, flags, options)
    limit = None if memory is None else parse_size(memory)
    result = api.plan(
        request.data,
        method=request.method,
        backbone=request.backbone,
        recipe=request.recipe,
        settings=request.settings,
        options=PlanOptions(memory=limit, attention=attention, measure=measure, axes=axes),
    )
    print_json(result.to_dict()) if as_json else typer.echo(result.text())
