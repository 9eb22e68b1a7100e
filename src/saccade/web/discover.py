"""What a folder is, by its files: a run, a hierarchy of runs, or heads trained on a hierarchy. No torch.

HIERARCHY/hierarchy.yaml   settings, beside the levels, each a run of its own
HEADS/head/head.json       a trained head, and the hierarchy it reads
RUN/config.yaml            a run
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from saccade.base import config, places, run_folder
from saccade.base.contracts import Source
from saccade.data.open import open_data
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import SaccadeError, UsageError
from saccade.features.table import storable
from saccade.hierarchy.settings import FILE, LEVELS, is_hierarchy, read_request, settings_of
from saccade.reporting.run_files import RunFiles, read_run
from saccade.train.settings import DataConfig

WEIGHTS = "model.safetensors"
RUN, HEAD = "config.yaml", Path("head") / "head.json"


@dataclass(frozen=True)
class HierarchyFolder:
    """A hierarchy, as its files describe it.

    Parameters
    ----------
    folder : Path
        Of the hierarchy.
    head : Path, optional
        The run of ``saccade finetune`` whose head weights the regions.
    tile : str
        MODEL of the tile level.
    levels : tuple of str
        MODELs of all levels, own ones as paths.
    """

    folder: Path
    head: Path | None
    tile: str
    levels: tuple[str, ...]


def is_run(folder: Path) -> bool:
    return (folder / RUN).is_file()


def is_layered(folder: Path) -> bool:
    """Whether a folder is a hierarchy, or holds heads trained on one."""
    return is_hierarchy(folder) or (folder / HEAD).is_file()


def files_of(folder: Path) -> RunFiles:
    """The files of a run. Raises UsageError, without paths, if the folder has disappeared."""
    try:
        return read_run(folder)
    except UsageError as error:
        raise _gone(folder) from error


def _gone(folder: Path) -> UsageError:
    return UsageError(f"the run {folder.name} no longer exists", hint="its folder was moved or deleted")


def read_layered(folder: Path) -> HierarchyFolder:
    """The hierarchy in a folder. Raises UsageError or DataError, naming the unreadable file."""
    head = None if is_hierarchy(folder) else folder
    root = folder
    if head is not None:
        root = Path(
            places.absolute(str(run_folder.read_json(folder / HEAD).get("hierarchy", "")), (folder / HEAD).parent)
        )
        if not is_hierarchy(root):
            raise UsageError(
                f"the hierarchy that the head in {folder.name} reads is gone", got=root.name, expected=f"{FILE} in it"
            )
    try:
        hipt = read_request(root).hipt
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UsageError(f"{root.name}/{FILE} cannot be read", got=str(error)) from error
    models = [getattr(hipt, level) or str(root / level) for level in LEVELS if getattr(hipt, level) != "none"]
    levels = [model for model in models if is_run(Path(model)) or not Path(model).is_relative_to(root)]
    return HierarchyFolder(root, head, models[0], tuple(levels))


def open_layered(folder: Path, head: Path | None = None) -> SlideTiles:
    """The training slides of a hierarchy, or of its ``head``, cut into tiles as the hierarchy expects.

    Raises DataError, UsageError.
    """
    settings = read_request(folder)
    overrides = {key: value for key, value in settings_of(settings.levels["tile"]).items() if key.startswith("data.")}
    overrides["data.source"] = settings.data
    if head is not None:
        overrides |= {
            key: config.TypedText(places.absolute(text, (head / HEAD).parent))
            for key, text in run_folder.read_json(head / HEAD).get("slides", {}).items()
        }
    source = open_data(dataclasses.asdict(config.override_section("data", DataConfig(), overrides)))
    if not isinstance(source, SlideTiles):
        raise UsageError("the data of the hierarchy are not slides", got=named(str(overrides["data.source"])))
    return source


def open_run(folder: Path) -> Source:
    """The training images of a run. Raises DataError if they are missing, UsageError."""
    if not is_run(folder):
        raise _gone(folder)
    data_settings = config.load(folder / RUN).get("data") or {}
    if not data_settings.get("source"):
        raise UsageError("the run does not record its data", got=folder.name)
    return open_data(data_settings)


def learned_from_slides(folder: Path) -> bool:
    """Whether a run was trained on tiles of slides."""
    try:
        settings = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))
        return bool((settings.get("data") or {}).get("mpp"))
    except (OSError, AttributeError, yaml.YAMLError):
        return False


def slides_recorded(folder: Path) -> list[str]:
    """Names of the training slides in data.json."""
    try:
        listed = json.loads((folder / "data.json").read_text(encoding="utf-8"))["files"]
        names = [str(entry["id"]) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(dict.fromkeys(name.rpartition("#")[0] or name for name in names))  # of tiles: SLIDE#x,y


def axes_of(folder: Path) -> int:
    """Input axes of a run's model: 2 images (or unknown), 3 volumes, 0 grids of vectors."""
    try:
        input_spec = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["input"]
    except (OSError, ValueError, KeyError):
        return 2
    return 0 if input_spec.get("grid") else int(input_spec.get("axes", 2))


def one_line(error: SaccadeError) -> str:
    """An error in one line, without paths."""
    return without_places(error.what if error.got is None else f"{error.what} ({error.got})")


def without_places(words: str) -> str:
    """The text with every path reduced to its last part: the page must not reveal where files are."""
    return re.sub(r"(?:[A-Za-z]:\\|(?:\.\.)?/)(?:[^\s:/\\]+[/\\])+", "", words)


def stamp(path: Path) -> tuple[int, int] | None:
    """Modification time (ns) and size of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def written(model: str) -> tuple[int, int] | None:
    """The stamp of the weights file of MODEL; None for models without a file, such as ``random:NAME``."""
    path = Path(model) if Path(model).exists() else Path(model.rpartition("@")[0] or model)
    candidates = (path / "model" / WEIGHTS, path / WEIGHTS) if path.is_dir() else (path,)
    return next((found_stamp for candidate in candidates if (found_stamp := stamp(candidate)) is not None), None)


def encodable(answer: Any) -> Any:
    """The answer with text that can be encoded: file names may hold invalid bytes (features.table.storable)."""
    if isinstance(answer, str):
        return storable(answer)
    if isinstance(answer, Mapping):
        return {encodable(key): encodable(value) for key, value in answer.items()}
    return [encodable(item) for item in answer] if isinstance(answer, list | tuple) else answer


def named(path: str) -> str:
    """The last part of an absolute path or one that begins with ``../``; other paths unchanged."""
    return Path(path).name if Path(path).is_absolute() or path.startswith("../") else path


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The file name of each path, with as many parent folders as distinguish it from the others."""
    parts = [[part for part in PurePosixPath(path).parts if part not in ("/", "..")] for path in paths]
    taken = [1] * len(parts)
    while True:
        labels = ["/".join(path_parts[-count:]) for path_parts, count in zip(parts, taken)]
        alike = Counter(labels)
        longer = [i for i, name in enumerate(labels) if alike[name] > 1 and taken[i] < len(parts[i])]
        if not longer:
            return labels
        for i in longer:
            taken[i] += 1


def short_names(paths: Sequence[Path]) -> list[str]:
    """A distinct name for each path: its own, or with a parent folder where others share it.

    ``b/hipt`` where the parent differs, ``b/…/hipt`` where a folder farther up does; never a whole path. Where no
    single folder distinguishes them they are numbered.
    """
    groups: dict[str, list[Path]] = {}
    for path in dict.fromkeys(paths):
        groups.setdefault(path.name, []).append(path)
    labels = {}
    for name, alike in groups.items():
        above = [[names.name for names in path.parents if names.name] for path in alike] if len(alike) > 1 else []
        depths = range(min((len(names) for names in above), default=0))
        differs = next((up for up in depths if len({names[up] for names in above}) == len(alike)), None)
        for i, path in enumerate(alike):
            labels[path] = name if differs is None else f"{above[i][differs]}/{'…/' if differs else ''}{name}"
    return numbered([labels[path] for path in paths], paths)


def numbered(names: Sequence[str], of: Sequence[object]) -> list[str]:
    """The names, with a number appended where several of the things ``of`` share one."""
    alike: dict[str, list[object]] = {}
    for name, thing in zip(names, of, strict=True):
        things = alike.setdefault(name, [])
        if thing not in things:
            things.append(thing)
    return [
        f"{name} ({alike[name].index(thing) + 1})" if len(alike[name]) > 1 else name
        for name, thing in zip(names, of, strict=True)
    ]


def runs_below(folder: Path, depth: int = 3) -> list[Path]:
    """Runs, hierarchies and heads under a folder, newest first; hidden folders and the contents of runs are skipped."""
    runs: list[tuple[float, Path]] = []
    level: Sequence[Path] = [folder]
    for _ in range(depth + 1):
        deeper: list[Path] = []
        for path in level:
            marks = [path / name for name in (RUN, FILE, HEAD) if (path / name).is_file()]
            if marks:
                runs.append((marks[0].stat().st_mtime, path))
                continue
            try:
                deeper += [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
            except OSError:
                continue
        level = deeper
    return [path for _, path in sorted(runs, key=lambda entry: entry[0], reverse=True)]
