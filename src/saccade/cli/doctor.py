"""``saccade doctor``: diagnose a run, or describe this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import Json, refuse
from saccade.cli.progress import print_json


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run (default: describe this machine).")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Re-run the last skipped (non-finite) step.")] = False,
    as_json: Json = False,
) -> None:
    """Diagnose a run: the problem, the evidence, the likely cause and the setting to change.

    Without RUN, print what is installed on this machine: versions, devices, precision, optional packages.
    """
    if run is None:
        refuse({"--replay": replay or None}, "without RUN")
        _describe_machine(as_json)
    elif replay:
        _replay(run, as_json)
    else:
        _diagnose(run, as_json)


def _diagnose(run: Path, as_json: bool) -> None:
    from saccade import api

    problems = api.examine(run)
    if as_json:
        print_json([vars(problem) for problem in problems])
        return
    typer.echo("\n\n".join(problem.text() for problem in problems) or f"{run}: no problem in the logged metrics")


def _replay(run: Path, as_json: bool) -> None:
    from saccade import api
    from saccade.train.replay import to_text

    result = api.replay(run)
    print_json(result) if as_json else typer.echo(to_text(result))


def _describe_machine(as_json: bool) -> None:
    from saccade import api

    machine = api.doctor()
    if as_json:
        print_json(machine)
        return
    for key, value in machine.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_yes_or_no(item)}" for name, item in value.items())
        typer.echo(f"{key:14s} {_yes_or_no(value)}")


def _yes_or_no(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value
