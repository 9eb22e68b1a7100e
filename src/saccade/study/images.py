"""The images of a study: decoded once into its folder and memory-mapped by all trials.

``OUT/data/flat.npy`` is mapped into memory, so that any number of processes hold it once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base import run_folder
from saccade.base.contracts import Record
from saccade.base.places import base_name, without_folders
from saccade.data.cache.image_cache import ImageCache, build_cache, with_statistics
from saccade.data.open import open_source
from saccade.data.splits import choose_parts
from saccade.errors import DataError, StorageError, UsageError
from saccade.evaluation.contamination import refuse_shared
from saccade.study.design import StudyConfig
from saccade.train.data_selection import draw_nested

ARRAYS = ("shapes", "starts", "original_px")


@dataclass(frozen=True)
class Images:
    """Labelled images of the training and the test split; ``text`` describes the split."""

    name: str
    train: ImageCache
    test: ImageCache
    text: str

    @property
    def classes(self) -> list[str]:
        return sorted({str(record.label) for record in self.train.records})


def prepare(out: Path, study: StudyConfig, report: Callable[[int, int], None]) -> None:
    """Open, decode and split the images of a study, unless that is done."""
    folder = out / "data"
    if (folder / "images.json").exists():
        return
    source = open_source(
        study.data, manifest=study.manifest, label=study.label, group=study.group, keep_na=study.keep_na
    )
    cache = build_cache(source, cache_px=round(1.5 * study.size_px), report=report)
    parts = choose_parts(cache.records, cache.hashes, seed=0)
    labels = {cache.records[int(i)].label for i in parts.train}
    unseen = {cache.records[int(i)].label for i in parts.test} - labels
    if unseen:
        raise DataError("the test split has classes that the training split lacks", got=", ".join(map(str, unseen)))
    shared = refuse_shared(
        cache.records, cache.hashes, parts.train.tolist(), parts.test.tolist(), allow=study.allow_overlap
    )
    test = parts.test
    if study.test_limit and study.test_limit < len(test):
        test = draw_nested(cache.records, test, study.test_limit, 0)
    described = {
        "name": base_name(source.name),
        "text": parts.text + (". WARNING: training and test data share images or groups" if shared else ""),
        "train": parts.train.tolist(),
        "test": np.sort(test).tolist(),
        "offset": cache.offset,
        "scale": cache.scale,
        "records": [dataclasses.asdict(record) for record in cache.records],
        "hashes": cache.hashes,
        "damaged": [(name, without_folders(reason)) for name, reason in cache.damaged],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "flat.npy", np.asarray(cache.flat))
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(cache, name))
    except OSError as error:
        raise StorageError(f"the decoded images do not fit in {folder}", got=error.strerror) from error
    run_folder.write_json(folder / "images.json", described)


def load(out: Path) -> Images:
    """The images that ``prepare`` wrote; pixels stay on disk until they are read."""
    folder = out / "data"
    described: dict[str, Any] = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    cache = ImageCache(
        flat=np.load(folder / "flat.npy", mmap_mode="r"),
        records=[Record(**record) for record in described["records"]],
        hashes=described["hashes"],
        damaged=[tuple(pair) for pair in described["damaged"]],
        offset=described["offset"],
        scale=described["scale"],
        **{name: np.load(folder / f"{name}.npy") for name in ARRAYS},
    )
    train = with_statistics(cache.select(np.array(described["train"])))
    test = cache.select(np.array(described["test"]))
    return Images(described["name"], train, test, described["text"])


def check_sizes(images: Images, sizes: tuple[int, ...]) -> None:
    """Raise UsageError for a training-set size that the data do not allow."""
    available, classes = len(images.train), len(images.classes)
    if max(sizes) > available:
        raise UsageError("too few training images for --sizes", got=max(sizes), expected=f"at most {available:,}")
    if min(sizes) < 2 * classes:
        got, expected = min(sizes), f"at least {2 * classes}: two for each of {classes} classes"
        raise UsageError("too few training images for the classes", got=got, expected=expected)
