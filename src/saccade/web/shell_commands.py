"""Commands that the page prints, ready to be copied into a shell: they work from any folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from saccade.reporting.run_files import RunFiles, mapping
from saccade.web import discover

Columns = dict[str, str | None]
"""Where labels and groups are read, as the run was given them: ``labels`` (a table apart), ``label``, ``group``."""


def learned_from(run: Path) -> tuple[str, Columns]:
    """DATA of a run as a command takes it, empty where it does not say, and where its labels and groups are read."""
    files = discover.files_of(run)
    named = {"labels": "manifest", "label": "label", "group": "group"}
    return _source(files), {word: files.setting("data", key) or None for word, key in named.items()}


def embed_command(run: Path, out: Path) -> str:
    """What makes the table ``out`` of the images that a run learned from."""
    data, columns = learned_from(run)
    return _joined("embed", run, data or "DATA", ["--out", str(out), *_options(columns)])


def evaluate_command(run: Path) -> str:
    """What measures a run: on its own data where they have classes and a part that was kept back, else on DATA."""
    files = discover.files_of(run)
    source = _source(files)
    if not source or len(mapping(files.data.get("labels"))) < 2 or files.setting("data", "split") == "all":
        return _joined("evaluate", run, "DATA", [])
    return _joined("evaluate", run, source, _options(learned_from(run)[1]))


def _joined(command: str, run: Path, data: str, more: list[str]) -> str:
    return shlex.join(["saccade", command, str(run), data, *more])


def _source(files: RunFiles) -> str:
    """DATA as a command takes it; a level above the tiles of a hierarchy has its grids beside it, wherever it lies."""
    own = files.folder.parent / "grids" / files.folder.name
    if discover.is_hierarchy(files.folder.parent) and own.is_dir():
        return str(own)
    source = str(files.setting("data", "source") or "")
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _options(columns: Columns) -> list[str]:
    return [word for name, value in columns.items() if value for word in (f"--{name}", str(value))]
