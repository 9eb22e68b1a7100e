"""The folder of a run: every file in it, written so that a crash or a full disk loses nothing.

config.yaml  env.json  data.json  metrics.jsonl  checkpoints/  model/  evaluation.json  report.html
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.base.files import check_writable, make_folder, remove_leftovers, write_text
from saccade.base.locks import is_lock
from saccade.errors import UsageError, first_line

HIERARCHY = "hierarchy.yaml"
"""What a hierarchy was asked for; where this file is, the folder holds one (hierarchy/settings)."""
SLIDES_PNG = "figures/slides.png"
"""Some of the slides that a run has learned from, with what was found on them."""


def finite(value: Any) -> Any:
    """The same value, all that is inside it too, with null for numbers that are not finite: JSON has none of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every reader takes; see ``finite``. Names that are not UTF-8 keep their bytes as escapes."""
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    escaped = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    write_text(path, escaped + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("file of a run not found", got=path, hint="is this a saccade run folder?") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno} is not valid JSON", got=error.msg) from error
    except (OSError, ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise UsageError(f"{path} is not valid JSON", got=first_line(error)) from error


class Metrics:
    """metrics.jsonl: one line a logged step. A line that cannot be written is reported once, not fatal."""

    def __init__(self, run: Path):
        self.path = run / "metrics.jsonl"
        self.failed = False

    def continue_from(self, step: int) -> float:
        """Forget lines from ``step`` on (they will be written again) and a torn last line.

        Returns the training seconds spent before ``step``.
        """
        if not self.path.exists():
            return 0.0
        earlier = [line for line in read_metrics(self.path) if line["step"] < step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in earlier))
        seconds = earlier[-1].get("seconds") if earlier else 0.0
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def append(self, line: Mapping[str, Any]) -> str | None:
        """Add a line; returns a message the first time the disk refuses it."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(line)) + "\n")
        except OSError as error:
            if not self.failed:
                self.failed = True
                return f"metrics are not being written ({error.strerror}); training goes on"
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; damaged ones, such as one cut off by a crash, are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def not_a_run(folder: Path) -> UsageError:
    """The error for a folder without config.yaml; names the runs inside, for example those of a hierarchy."""
    inside = [path.name for path in sorted(folder.glob("*")) if (path / "config.yaml").exists()]
    hint = f"it holds runs: {', '.join(str(folder / name) for name in inside[:4])}" if inside else None
    return UsageError("not a run folder", got=folder, expected="a folder with config.yaml", hint=hint)


def require_run(run: Path) -> None:
    """Raise UsageError unless the folder holds a run."""
    if not (run / "config.yaml").exists():
        raise not_a_run(run)


def prepare(run: Path, *, resume: bool) -> None:
    """Make the folder, or refuse one that already holds a run. Call it with the folder's lock held."""
    if (run / "config.yaml").exists() and not resume:
        raise UsageError(
            "this folder already holds a run",
            got=run,
            hint="saccade pretrain --resume continues it; or choose another --out",
        )
    if resume and not (run / "config.yaml").exists():
        raise UsageError("no run to resume here", got=run, hint="leave out --resume to start one")
    if not resume and run.exists() and (not run.is_dir() or not all(map(is_lock, run.iterdir()))):
        raise UsageError("--out is not an empty folder", got=run, hint="choose a new folder")
    make_folder(run)
    if resume:
        for folder in (run, run / "checkpoints"):
            check_writable(folder)
    for folder in (run, run / "checkpoints"):
        remove_leftovers(folder)


def data_record(model: str | Path) -> dict[str, Any] | None:
    """data.json of the run that a model comes from: a run folder (or a hierarchy's), its model folder, or the weights
    file therein."""
    path = Path(model)
    if not path.exists():
        return None
    for folder in (path, *path.absolute().parents[:2]):
        is_run = any((folder / name).is_file() for name in ("config.yaml", HIERARCHY))
        if is_run and (folder / "data.json").is_file():
            record: dict[str, Any] = read_json(folder / "data.json")
            return record if set(record) != {"places"} else None
    return None
