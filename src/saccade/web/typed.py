"""Commands that the page prints, ready to be copied into a shell: they work from any folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from saccade.reporting.files import RunFiles, mapping, read_run
from saccade.web import folders


def embed_command(run: Path, out: Path) -> str:
    """What makes the table ``out`` of the images that a run learned from."""
    files = read_run(run)
    return _joined("embed", run, _source(files) or "DATA", ["--out", str(out), *_columns(files)])


def evaluate_command(run: Path) -> str:
    """What measures a run: on its own data where they have classes and a part that was kept back, else on DATA."""
    files = read_run(run)
    source = _source(files)
    if not source or len(mapping(files.data.get("labels"))) < 2 or files.setting("data", "split") == "all":
        return _joined("evaluate", run, "DATA", [])
    return _joined("evaluate", run, source, _columns(files))


def _joined(command: str, run: Path, data: str, more: list[str]) -> str:
    return shlex.join(["saccade", command, str(run), data, *more])


def _source(files: RunFiles) -> str:
    """DATA as a command takes it; a level above the tiles of a hierarchy has its grids beside it, wherever it lies."""
    own = files.folder.parent / "grids" / files.folder.name
    if folders.is_hierarchy(files.folder.parent) and own.is_dir():
        return str(own)
    source = str(files.setting("data", "source") or "")
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _columns(files: RunFiles) -> list[str]:
    """--labels, --label and --group as the run was given them."""
    given = {"--labels": "manifest", "--label": "label", "--group": "group"}
    found = {option: files.setting("data", key) for option, key in given.items()}
    return [word for option, value in found.items() if value for word in (option, str(value))]
