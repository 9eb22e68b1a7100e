"""The command line: thin, with the same words as the Python functions. The commands are in ``commands``.

Data go to stdout, progress and messages to stderr; exit code 0 is success, 1 a failure, 2 a wrong call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from saccade import __version__
from saccade.cli import learn, look, measure, plan
from saccade.errors import SaccadeError
from saccade.methods.registry import describe, method_names

COMMANDS: tuple[Callable[..., None], ...] = (
    learn.quickstart,
    look.show,
    plan.plan,
    learn.pretrain,
    learn.finetune,
    learn.compare,
    measure.embed,
    measure.evaluate,
    look.attend,
    look.search,
    measure.export,
    look.report,
    look.view,
    look.doctor,
)
EPILOGS: dict[Callable[..., None], str] = {
    learn.pretrain: "\b\nMethods:\n" + "\n".join(f"  {name:18s} {describe(name)}" for name in method_names())
}

app = typer.Typer(
    name="saccade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learn from unlabelled biomedical images, measure it with few labels, see where it looks.\n\n"
    "Start with: saccade quickstart",
    epilog="DATA: a folder, .zip, .tar[.gz|.xz], .npz, a manifest CSV or Parquet, a slide, a volume, "
    "or synthetic:tissue, synthetic:volume, synthetic:slide. "
    "MODEL: a run folder, a weights file, random:NAME or timm:NAME.",
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"saccade {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What stands before the command."""


for command in COMMANDS:
    summary = inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0]  # whole: click would cut it at 45 letters
    app.command(epilog=EPILOGS.get(command), short_help=summary)(command)


def main() -> None:
    """Entry point: errors a person can act on are printed without a traceback."""
    try:
        app()
    except SaccadeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
