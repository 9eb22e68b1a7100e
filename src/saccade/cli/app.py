"""The command line: one module per command, with the same words as the Python functions.

Results go to stdout, progress and messages to stderr. Exit code 0 is success, 1 a failure, 2 a wrong call, 130
and 143 a run that SIGINT or SIGTERM interrupted. Commands import what they need when they run, so that
``saccade --help`` is quick.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from saccade import __version__
from saccade.cli.attend import attend
from saccade.cli.compare import compare
from saccade.cli.doctor import doctor
from saccade.cli.embed import embed
from saccade.cli.evaluate import evaluate
from saccade.cli.export import export
from saccade.cli.finetune import finetune
from saccade.cli.options import expand_groups
from saccade.cli.plan import plan
from saccade.cli.pretrain import pretrain
from saccade.cli.quickstart import quickstart
from saccade.cli.report import report
from saccade.cli.search import search
from saccade.cli.show import show
from saccade.cli.verify import verify
from saccade.cli.view import view
from saccade.errors import SaccadeError
from saccade.methods.registry import describe, method_names

COMMANDS: tuple[Callable[..., None], ...] = (
    quickstart,
    show,
    plan,
    pretrain,
    finetune,
    compare,
    embed,
    evaluate,
    attend,
    search,
    export,
    report,
    view,
    verify,
    doctor,
)
METHOD_TABLE = "\b\nMethods:\n" + "\n".join(f"  {name:18s} {describe(name)}" for name in method_names())
EPILOGS: dict[Callable[..., None], str] = {plan: METHOD_TABLE, pretrain: METHOD_TABLE}

app = typer.Typer(
    name="saccade",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Self-supervised learning on biomedical images: pretrain without labels, evaluate with few labels, "
    "visualize attention.\n\nStart with: saccade quickstart",
    epilog="DATA: a folder, .zip, .tar[.gz|.xz], .npz, a manifest CSV or Parquet, a slide, a volume, "
    "or synthetic:tissue, synthetic:volume, synthetic:slide. "
    "MODEL: a run folder, a weights file, random:NAME or timm:NAME.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"saccade {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


for command in COMMANDS:
    summary = inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0]  # in full: click would cut it at 45 letters
    app.command(epilog=EPILOGS.get(command), short_help=" ".join(summary.split()))(expand_groups(command))


def main() -> None:
    """Entry point: a SaccadeError is printed without a traceback."""
    try:
        app()
    except SaccadeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
