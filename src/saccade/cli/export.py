"""``saccade export``: convert a model for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import Json, Model
from saccade.cli.progress import print_json


def export(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="timm, hf (transformers), onnx or safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    as_json: Json = False,
) -> None:
    """Export a model to timm, transformers, ONNX or safetensors, and verify its features there.

    An architecture that the other program does not have is an error.
    """
    from saccade.api import export as run

    difference = run(model, to=to, out=out)
    if as_json:
        print_json({"model": model, "to": to, "out": str(out), "difference": difference})
        return
    check = "not verified: the other program is not installed"
    if difference is not None:
        check = f"largest relative difference {difference:.1g}"
    typer.echo(f"{out}: {to}, {check}")
