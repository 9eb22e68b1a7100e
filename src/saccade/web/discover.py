"""What a folder is, as its files say: a run, a hierarchy of runs, or heads that were trained on one. No torch.

HIERARCHY/hierarchy.yaml   what was asked for, beside its levels, each a run of its own
HEADS/head/head.json       a trained head, and which hierarchy it reads
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

from saccade.base import config, run_folder
from saccade.base.contracts import Source
from saccade.data.open import open_data
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import SaccadeError, UsageError
from saccade.features.table import storable
from saccade.hierarchy.settings import FILE, LEVELS, is_hierarchy, read_wanted, settings_of
from saccade.reporting.run_files import RunFiles, read_run
from saccade.train.settings import DataConfig

WEIGHTS = "model.safetensors"
RUN, HEAD = "config.yaml", Path("head") / "head.json"


@dataclass(frozen=True)
class HierarchyFolder:
    """A hierarchy, as its files say.

    folder   of the hierarchy              head     of the run of ``finetune`` whose head weighs the regions, if any
    tile     MODEL of the tile level       levels   MODELs of all its levels, own ones as paths
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
    """What a run says of itself. Raises UsageError, without places, where it has gone since the page was opened."""
    try:
        return read_run(folder)
    except UsageError as error:
        raise _gone(folder) from error


def _gone(folder: Path) -> UsageError:
    return UsageError(f"the run {folder.name} is no longer there", hint="its folder was moved or deleted")


def read_layered(folder: Path) -> HierarchyFolder:
    """Raises UsageError or DataError, naming the file, where what the folder says cannot be read."""
    head = None if is_hierarchy(folder) else folder
    place = folder
    if head is not None:
        place = Path(str(run_folder.read_json(folder / HEAD).get("hierarchy", "")))
        if not is_hierarchy(place):
            raise UsageError(
                f"the hierarchy that the head in {folder.name} reads is gone", got=place.name, expected=f"{FILE} in it"
            )
    try:
        hipt = read_wanted(place).hipt
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UsageError(f"{place.name}/{FILE} cannot be read", got=str(error)) from error
    named = [getattr(hipt, level) or str(place / level) for level in LEVELS if getattr(hipt, level) != "none"]
    levels = [one for one in named if is_run(Path(one)) or not Path(one).is_relative_to(place)]
    return HierarchyFolder(place, head, named[0], tuple(levels))


def open_layered(folder: Path, head: Path | None = None) -> SlideTiles:
    """The slides that a hierarchy learned from, or those its ``head`` did, cut into tiles as the hierarchy is used to.

    Raises DataError, UsageError.
    """
    wanted = read_wanted(folder)
    own = {key: value for key, value in settings_of(wanted.levels["tile"]).items() if key.startswith("data.")}
    own["data.source"] = wanted.data
    if head is not None:
        own |= {
            key: config.TypedText(text) for key, text in run_folder.read_json(head / HEAD).get("slides", {}).items()
        }
    found = open_data(dataclasses.asdict(config.override_section("data", DataConfig(), own)))
    if not isinstance(found, SlideTiles):
        raise UsageError("a hierarchy is made of slides", got=named(str(own["data.source"])))
    return found


def open_run(folder: Path) -> Source:
    """The images that a run learned from. Raises DataError where they are no longer there, UsageError."""
    if not is_run(folder):
        raise _gone(folder)
    known = (yaml.safe_load((folder / RUN).read_text(encoding="utf-8")) or {}).get("data") or {}
    if not known.get("source"):
        raise UsageError("the run does not say what it learned from", got=folder.name)
    return open_data(known)


def learned_from_slides(folder: Path) -> bool:
    """Whether a run says that its images are tiles of slides."""
    try:
        settings = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))
        return bool((settings.get("data") or {}).get("mpp"))
    except (OSError, AttributeError, yaml.YAMLError):
        return False


def slides_recorded(folder: Path) -> list[str]:
    """Names of the slides that a run or a hierarchy learned from, as its data.json has them."""
    try:
        listed = json.loads((folder / "data.json").read_text(encoding="utf-8"))["files"]
        names = [str(one["id"]) for one in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(dict.fromkeys(name.rpartition("#")[0] or name for name in names))  # of tiles: SLIDE#x,y


def axes_of(folder: Path) -> int:
    """Of what a run's model looks at, as its files say: 2 images (or nothing known), 3 volumes, 0 grids of vectors."""
    try:
        seen = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["input"]
    except (OSError, ValueError, KeyError):
        return 2
    return 0 if seen.get("grid") else int(seen.get("axes", 2))


def told(error: SaccadeError) -> str:
    """What went wrong, in one line without places."""
    return without_places(error.what if error.got is None else f"{error.what} ({error.got})")


def without_places(words: str) -> str:
    """Of every path only the last part: where things lie here is nobody's business."""
    return re.sub(r"(?:[A-Za-z]:\\|(?:\.\.)?/)(?:[^\s:/\\]+[/\\])+", "", words)


def stamp(path: Path) -> tuple[int, int] | None:
    """When a file was written (ns) and its bytes; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def written(model: str) -> tuple[int, int] | None:
    """The stamp of the file in which the weights of MODEL lie; None of those that are no file, as ``random:NAME``."""
    path = Path(model) if Path(model).exists() else Path(model.rpartition("@")[0] or model)
    places = (path / "model" / WEIGHTS, path / WEIGHTS) if path.is_dir() else (path,)
    return next((found for place in places if (found := stamp(place)) is not None), None)


def spelt(answer: Any) -> Any:
    """The same answer with text that can be sent: names of files may hold bytes that are none (store.storable)."""
    if isinstance(answer, str):
        return storable(answer)
    if isinstance(answer, Mapping):
        return {spelt(key): spelt(value) for key, value in answer.items()}
    return [spelt(one) for one in answer] if isinstance(answer, list | tuple) else answer


def named(place: str) -> str:
    """Of a path that begins at the root or climbs its last part; others as they are."""
    return Path(place).name if Path(place).is_absolute() or place.startswith("../") else place


def told_apart(places: Sequence[str]) -> list[str]:
    """Of each path its file name, with as many of the folders above it as tell it from the others."""
    parts = [[one for one in PurePosixPath(place).parts if one not in ("/", "..")] for place in places]
    taken = [1] * len(parts)
    while True:
        shown = ["/".join(own[-count:]) for own, count in zip(parts, taken)]
        alike = Counter(shown)
        longer = [i for i, name in enumerate(shown) if alike[name] > 1 and taken[i] < len(parts[i])]
        if not longer:
            return shown
        for i in longer:
            taken[i] += 1


def short_names(places: Sequence[Path]) -> list[str]:
    """A name for each of these paths, no two alike: its own, or, where others share it, one with a folder above.

    ``b/hipt`` where the nearest folder that differs is the one above, ``b/…/hipt`` where it is farther up; never a
    path as a whole. Where no one folder tells them apart they are numbered.
    """
    groups: dict[str, list[Path]] = {}
    for place in dict.fromkeys(places):
        groups.setdefault(place.name, []).append(place)
    shown = {}
    for name, alike in groups.items():
        above = [[one.name for one in place.parents if one.name] for place in alike] if len(alike) > 1 else []
        depths = range(min((len(one) for one in above), default=0))
        differs = next((up for up in depths if len({one[up] for one in above}) == len(alike)), None)
        for i, place in enumerate(alike):
            shown[place] = name if differs is None else f"{above[i][differs]}/{'…/' if differs else ''}{name}"
    return numbered([shown[place] for place in places], places)


def numbered(names: Sequence[str], of: Sequence[object]) -> list[str]:
    """The names, and where several things share one, a number behind it; ``of``: the things."""
    alike: dict[str, list[object]] = {}
    for name, one in zip(names, of, strict=True):
        things = alike.setdefault(name, [])
        if one not in things:
            things.append(one)
    return [
        f"{name} ({alike[name].index(one) + 1})" if len(alike[name]) > 1 else name
        for name, one in zip(names, of, strict=True)
    ]


def runs_below(folder: Path, depth: int = 3) -> list[Path]:
    """Runs, hierarchies and heads under a folder, newest first; hidden folders and the insides of runs are left out."""
    found: list[tuple[float, Path]] = []
    level: Sequence[Path] = [folder]
    for _ in range(depth + 1):
        deeper: list[Path] = []
        for place in level:
            marks = [place / name for name in (RUN, FILE, HEAD) if (place / name).is_file()]
            if marks:
                found.append((marks[0].stat().st_mtime, place))
                continue
            try:
                deeper += [p for p in sorted(place.iterdir()) if p.is_dir() and not p.name.startswith(".")]
            except OSError:
                continue
        level = deeper
    return [place for _, place in sorted(found, key=lambda one: one[0], reverse=True)]
