"""Commands that the page displays for copying into a shell; they work from any folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from saccade.base.places import with_places
from saccade.reporting.run_files import RunFiles, mapping
from saccade.web import discover

Columns = dict[str, str | None]
"""Columns for labels and groups, as given to the run: ``labels`` (a separate table), ``label``, ``group``."""


def learned_from(run: Path) -> tuple[str, Columns]:
    """DATA of a run as a command takes it (empty if not recorded), and its label and group columns."""
    files = discover.files_of(run)
    columns = {"labels": "manifest", "label": "label", "group": "group"}
    data = mapping(with_places(files.config, run).get("data"))
    return _source(files), {word: data.get(key) or None for word, key in columns.items()}


def embed_command(run: Path, out: Path) -> str:
    """The command that computes the table ``out`` of a run's training images."""
    data, columns = learned_from(run)
    return _joined("embed", run, data or "DATA", ["--out", str(out), *_options(columns)])


def evaluate_command(run: Path) -> str:
    """The command that evaluates a run, on its own data if they have classes and a held-out part, else on DATA."""
    files = discover.files_of(run)
    source = _source(files)
    if not source or len(mapping(files.data.get("labels"))) < 2 or files.setting("data", "split") == "all":
        return _joined("evaluate", run, "DATA", [])
    return _joined("evaluate", run, source, _options(learned_from(run)[1]))


def _joined(command: str, run: Path, data: str, more: list[str]) -> str:
    return shlex.join(["saccade", command, str(run), data, *more])


def _source(files: RunFiles) -> str:
    """DATA as a command takes it; for an upper level of a hierarchy, the grids beside it."""
    recorded = files.folder.parent / "grids" / files.folder.name
    if discover.is_hierarchy(files.folder.parent) and recorded.is_dir():
        return str(recorded)
    source = str(mapping(with_places(files.config, files.folder).get("data")).get("source") or "")
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _options(columns: Columns) -> list[str]:
    return [word for name, value in columns.items() if value for word in (f"--{name}", str(value))]
