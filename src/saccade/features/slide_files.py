"""Feature files in a folder, one per slide: which are up to date, and their names. No torch here.

A file is up to date when slide, weights, tiling and network input are the same. Labels are updated in place.
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
"""Fields of a slide that its vectors do not depend on."""


def read_if_current(path: Path, about: Mapping[str, Any], max_bad: float) -> dict[str, Any] | None:
    """Metadata of a file if it is up to date with ``about``, otherwise None.

    max_bad   largest fraction of unreadable tiles that may be missing in it
    """
    stored = read_about(path) if path.is_file() else {}
    if any(stored.get(key) != about.get(key) for key in SAME) or stored.get("left_out", 0) > max_bad * about["tiles"]:
        return None
    return stored


def update_labels(path: Path, stored: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Update label, group and split in a file where they differ from its metadata ``stored``.

    Raises StorageError, DataError.
    """
    if any(stored.get(key) != about[key] for key in KNOWN):
        features = load_features(path)
        fields = {key: about[key] for key in KNOWN}
        save_features(path, SlideFeatures(features.coords, features.features, features.about | fields))


def name_files(folder: Path, suffix: str, slides: Sequence[str], hashes: Sequence[str]) -> list[Path]:
    """File in ``folder`` of every slide: its stem, or with its folders (A__x.tif) where two slides share a stem.

    A slide that has a file under any of its names keeps it, so that embedding it alone and later with others does not
    write it twice.

    slides, hashes   ids and content hashes      suffix   of the files, with the dot
    Raises UsageError where two slides would have the same file.
    """
    files = {path.stem for path in folder.glob(f"*{suffix}")} if folder.is_dir() else set()
    stems = [_stem(slide) for slide in slides]
    shared = Counter(stems)
    usual = [_with_folders(slide) if shared[stem] > 1 else stem for slide, stem in zip(slides, stems)]
    owners: dict[str, int] = {}

    def keeps(number: int, name: str) -> bool:
        """Claim a file for a slide if it holds that slide and is not claimed yet."""
        is_free_and_same = (
            name not in owners and read_about(folder / f"{name}{suffix}").get("slide_sha256") == hashes[number]
        )
        if is_free_and_same:
            owners[name] = number
        return is_free_and_same

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
    """An id as text: undecodable bytes are escaped."""
    return str(storable(slide))


def _may_be(name: str, slide: str) -> bool:
    """Whether a file name is one of the names of a slide."""
    file_name = PurePosixPath(_written(slide)).name
    return name in (_stem(slide), file_name) or name.endswith(f"__{file_name}")
