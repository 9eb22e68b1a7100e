"""The files of features in a folder, one a slide: which of them still hold, and what each is called. No torch here.

A file holds where everything is the same that its vectors were computed from: slide, weights, how the slide was cut,
and how pixels became the network's input. What is only known of the slide (its label) is written anew into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from saccade.data.slide_features import SlideFeatures, load_features, read_about, save_features
from saccade.errors import UsageError
from saccade.features.table import storable

CUT = ("mpp", "tile_px", "tile_px_level0", "tile_px_level0_y", "tissue", "tiles")
SAME = ("slide_sha256", "model_sha256", *CUT, "input")
"""What the vectors of a slide depend on, by its name in ``about``."""
KNOWN = ("slide", "label", "group", "split")
"""What is known of a slide, and changes nothing in its vectors."""


def what_holds(path: Path, about: Mapping[str, Any], max_bad: float) -> dict[str, Any] | None:
    """What a file says of itself, if it has the vectors that ``about`` asks for; else None.

    max_bad   share of the tiles that may have been left out of it because they could not be read
    """
    there = read_about(path) if path.is_file() else {}
    if any(there.get(key) != about.get(key) for key in SAME) or there.get("left_out", 0) > max_bad * about["tiles"]:
        return None
    return there


def note_known(path: Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write into a file what is known of its slide now, where that is something else than it says (``there``).

    Raises StorageError, DataError.
    """
    if any(there.get(key) != about[key] for key in KNOWN):
        found = load_features(path)
        known = {key: about[key] for key in KNOWN}
        save_features(path, SlideFeatures(found.coords, found.features, found.about | known))


def name_files(folder: Path, suffix: str, slides: Sequence[str], hashes: Sequence[str]) -> list[Path]:
    """A file in ``folder`` for every slide: its stem, or with its folders (A__x.tif) where two of them share a stem.

    A slide that has a file there under any of its names keeps it, whatever other slides it is embedded with: what is
    embedded alone, and later among others, is not there twice.

    slides, hashes   ids and content hashes      suffix   of the files, with the dot
    Raises UsageError, with their ids, where two slides would have one file.
    """
    files = {place.stem for place in folder.glob(f"*{suffix}")} if folder.is_dir() else set()
    stems = [_stem(slide) for slide in slides]
    shared = Counter(stems)
    usual = [_with_folders(slide) if shared[stem] > 1 else stem for slide, stem in zip(slides, stems)]
    owners: dict[str, int] = {}

    def keeps(number: int, name: str) -> bool:
        """Whether a slide takes a file for its own, which nobody has and which holds this very slide."""
        own = name not in owners and read_about(folder / f"{name}{suffix}").get("slide_sha256") == hashes[number]
        if own:
            owners[name] = number
        return own

    rest = [k for k, name in enumerate(usual) if name not in files or not keeps(k, name)]
    rest = [k for k in rest if not any(keeps(k, name) for name in sorted(files) if _may_be(name, slides[k]))]
    for number in rest:
        name = usual[number] if usual[number] not in owners else _with_folders(slides[number])
        if name in owners:
            raise UsageError(
                f"two slides would both have the file {name}{suffix}",
                got=f"{slides[owners[name]]} and {slides[number]}",
                hint="rename one of them, or embed them into two folders",
            )
        owners[name] = number
    names = {number: name for name, number in owners.items()}
    return [folder / f"{names[number]}{suffix}" for number in range(len(slides))]


def _stem(slide: str) -> str:
    return PurePosixPath(_written(slide)).stem


def _with_folders(slide: str) -> str:
    return _written(slide).replace("../", "").replace("/", "__")


def _written(slide: str) -> str:
    """An id as it can be written: bytes that are no text are spelt out."""
    return str(storable(slide))


def _may_be(name: str, slide: str) -> bool:
    """Whether a file may be that of a slide, by its name."""
    own = PurePosixPath(_written(slide)).name
    return name in (_stem(slide), own) or name.endswith(f"__{own}")
