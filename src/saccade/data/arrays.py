"""Arrays on disk: ``.npz`` in the MedMNIST layout (Yang et al. 2023) and plain ``.npy`` stacks."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from saccade.contracts import Record, Sample
from saccade.errors import DataError

PARTS = ("train", "val", "test")


class ArraySource:
    """Images of one array file; satisfies contracts.Source.

    ``.npz`` has ``train_images``, ``train_labels`` and the same for val and test, or ``images`` and ``labels``.
    [N Y X] is grey, [N Y X 3] is colour, [N T Y X] are volumes; ``.npy`` is one such array without labels.
    Labels with several columns (multi-label) are left out. Pickled arrays are refused.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self.unlisted = 0
        self._stacks: list[np.ndarray] = []
        self._place: list[tuple[int, int]] = []
        self.records: list[Record] = []
        for split, images, labels in _parts(path):
            _check(images, labels, f"{path}:{split or 'images'}")
            self._stacks.append(images)
            for i in range(len(images)):
                label = str(labels[i].item()) if labels is not None and labels[i].size == 1 else None
                self.records.append(Record(id=f"{split or 'images'}/{i:06d}", label=label, split=split))
                self._place.append((len(self._stacks) - 1, i))

    def __len__(self) -> int:
        return len(self.records)

    def _pixels(self, index: int) -> np.ndarray:
        stack, row = self._place[index]
        pixels = self._stacks[stack][row]
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0) if colour else pixels[None])

    def read(self, index: int) -> Sample:
        return Sample(self._pixels(index), self.records[index])

    def content_hash(self, index: int) -> str:
        pixels = self._pixels(index)
        return hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def _parts(path: Path) -> list[tuple[str | None, np.ndarray, np.ndarray | None]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [(None, loaded, None)]
        with loaded:
            keys = set(loaded.files)
            found = [
                (
                    part,
                    loaded[f"{part}_images"],
                    loaded[f"{part}_labels"] if f"{part}_labels" in keys else None,
                )
                for part in PARTS
                if f"{part}_images" in keys
            ]
            if not found and "images" in keys:
                return [(None, loaded["images"], loaded["labels"] if "labels" in keys else None)]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        pickled = "pickle" in str(error).lower()
        raise DataError(
            f"{path}: " + ("holds pickled objects, which can run code" if pickled else "not a whole array file"),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="save plain number arrays with numpy.savez" if pickled else "copy it again",
        ) from error
    if not found:
        raise DataError(
            f"{path}: not in the MedMNIST layout",
            got=", ".join(sorted(keys)),
            expected="train_images, train_labels, ...",
        )
    return found  # type: ignore[return-value]


def _check(images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        raise DataError(
            f"{name}: not a stack of images",
            got=f"shape {images.shape}, {images.dtype}",
            expected="numbers, [N Y X], [N Y X 3] or [N T Y X]",
        )
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{name}: labels and images differ in number", got=f"{len(labels)} and {len(images)}")
