"""Paths of data, tables and weights: base names in what is handed on, the places themselves in ``data.json``.

A path tells who works where. Settings, model cards, reports and feature tables therefore hold base names; where the
files lie is in ``data.json`` of the run (beside a feature table ``TABLE.data.json``), relative to its folder where the
files lie near it, so that a folder with data and runs can be moved.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.base.files import write_text

FILE, KEY = "data.json", "places"
SETTINGS = ("data", "data.source", "data.manifest", "model.weights", "study.data", "study.manifest")
"""Settings that are paths, by dotted key, of runs, hierarchies and studies."""
ORIGIN = ("data", "labels", "made_by")
"""What a feature table comes from: images, label table, model."""
UP = 2  # folders above that of the run that a relative path may begin with
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[^/\s=,'\"]+/)+(?=[^/\s=,'\"])")


def base_name(path: str) -> str:
    """The last part of an absolute path; anything else, such as ``synthetic:tissue``, as it is.

    Examples
    --------
    >>> base_name("/home/me/data"), base_name("synthetic:tissue"), base_name("")
    ('data', 'synthetic:tissue', '')
    """
    return Path(path).name if Path(path).is_absolute() else path


def without_folders(text: str) -> str:
    """A text with the base names of the absolute paths in it.

    Examples
    --------
    >>> without_folders("saccade pretrain /home/me/data --out runs/1 --config=/tmp/a.yaml")
    'saccade pretrain data --out runs/1 --config=a.yaml'
    """
    return ABSOLUTE.sub("", text)


def relative(path: str, folder: Path) -> str:
    """An absolute path relative to a folder where it lies near it; else as it is."""
    if not Path(path).is_absolute():
        return path
    folder = folder.resolve()
    near = os.path.relpath(path, folder)
    above = folder.parents[UP - 1] if len(folder.parents) >= UP else folder
    return near if near.count("..") <= UP and above not in (Path("/"), Path.home().parent) else path


def absolute(path: str, folder: Path) -> str:
    """The inverse of ``relative``; base names of files that are not there stay as they are."""
    if not path or Path(path).is_absolute() or ":" in path:
        return path
    place = Path(os.path.normpath(folder.resolve() / path))
    return str(place) if place.exists() else path


def places_of(values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The absolute paths in the settings of a run, as ``data.json`` in ``folder`` keeps them."""
    paths = {key: _get(values, key) for key in SETTINGS}
    return {key: relative(path, folder) for key, path in paths.items() if _is_absolute(path)}


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with base names in place of absolute paths."""
    changed = dict(values)
    for key in SETTINGS:
        path = _get(changed, key)
        if _is_absolute(path):
            _set(changed, key, base_name(path))
    return changed


def with_places(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The inverse of ``without_places``, by ``data.json`` in ``folder``; a setting that was changed by hand stays."""
    places = read_places(folder / FILE)
    changed = dict(values)
    for key, place in places.items():
        path = absolute(place, folder)
        if _get(changed, key) == base_name(path) or _get(changed, key) == Path(place).name:
            _set(changed, key, path)
    return changed


def read_places(file: Path) -> dict[str, str]:
    """The places that a file holds; none where it cannot be read."""
    try:
        places = json.loads(file.read_text(encoding="utf-8"))[KEY]
        return {str(key): str(path) for key, path in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_places(file: Path, places: Mapping[str, str]) -> None:
    """Put the places into a file beside what else it holds. Raises StorageError."""
    if places == read_places(file):
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    write_text(file, json.dumps({KEY: dict(places)} | {k: v for k, v in record.items() if k != KEY}, indent=1) + "\n")


def origin_of_table(paths: Mapping[str, str | None], table: str | Path) -> dict[str, str | None]:
    """Paths as the metadata of a feature table hold them: relative to its folder, or base names of what lies elsewhere.

    The places of the latter go to ``TABLE.data.json``, which stays where the table is made. Raises StorageError.
    """
    folder, remote = Path(table).absolute().parent, "://" in str(table)
    near = {key: path and (path if remote else relative(path, folder)) for key, path in paths.items()}
    far = {key: path for key, path in near.items() if _is_absolute(path)}
    if not remote:
        side = Path(f"{table}.{FILE}")
        if far:
            write_places(side, {key: str(path) for key, path in far.items()})
        else:
            side.unlink(missing_ok=True)
    return {key: path and base_name(path) for key, path in near.items()}


def located_origin(about: Mapping[str, Any], table: str | Path) -> dict[str, Any]:
    """The metadata of a feature table with absolute paths where the files are there."""
    folder, places = Path(table).absolute().parent, read_places(Path(f"{table}.{FILE}"))
    paths = {key: about[key] for key in ORIGIN if isinstance(about.get(key), str)}
    return dict(about) | {
        key: places[key] if base_name(places.get(key, "")) == path else absolute(path, folder)
        for key, path in paths.items()
    }


def _is_absolute(path: Any) -> bool:
    return isinstance(path, str) and Path(path).is_absolute()


def _get(values: Mapping[str, Any], key: str) -> Any:
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _set(values: dict[str, Any], key: str, path: str) -> None:
    """Set a dotted key; mappings on the way are copied."""
    first, _, rest = key.partition(".")
    if rest:
        values[first] = dict(values[first])
        _set(values[first], rest, path)
    else:
        values[first] = path
