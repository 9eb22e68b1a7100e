"""Arrays on disk: ``.npz`` in the MedMNIST layout (Yang et al. 2023) and plain ``.npy`` stacks."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.errors import DataError, StorageError, first_line

PARTS = ("train", "val", "test")
Layout = Literal["grey", "colour", "volume"]
MAPPED_ABOVE = 64 * 2**20  # bytes of one array
Part = tuple[str | None, np.ndarray, np.ndarray | None]


class ArraySource:
    """Images of one array file; satisfies contracts.Source.

    ``.npz`` has ``train_images``, ``train_labels`` and the same for val and test, or ``images`` and ``labels``;
    ``.npy`` is one stack without labels, mapped and not loaded. [N Y X] and [N Y X 1] are grey, [N Y X 3] is
    colour, [N T Y X] are volumes. Labels with several columns (multi-label) are left out, and so are those that are
    missing: NaN or empty text. Pickled arrays are refused.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._stacks: list[np.ndarray] = []
        self._place: list[tuple[int, int]] = []
        self.records: list[Record] = []
        parts = _parts(path)
        layouts = [_layout(images, f"{path}:{split or 'images'}") for split, images, _ in parts]
        if len(set(layouts)) > 1:
            raise DataError(
                f"{path}: its parts hold different kinds of images",
                got=", ".join(layouts),
                expected="one kind of image",
            )
        self._layout, self.axes = layouts[0], 3 if layouts[0] == "volume" else 2
        for split, images, labels in parts:
            _check_labels(images, labels, f"{path}:{split or 'images'}")
            self._stacks.append(images)
            for i in range(len(images)):
                label = _label(labels[i].item()) if labels is not None and labels[i].size == 1 else None
                self.records.append(Record(id=f"{split or 'images'}/{i:06d}", label=label, split=split))
                self._place.append((len(self._stacks) - 1, i))
        if not self.records:
            raise DataError(f"{path}: no images found", got="arrays of length 0")

    def __len__(self) -> int:
        return len(self.records)

    def _pixels(self, index: int) -> np.ndarray:
        stack, row = self._place[index]
        pixels = np.asarray(self._stacks[stack][row])
        if self._layout == "colour" or (self._layout == "grey" and pixels.ndim == 3):
            pixels = np.moveaxis(pixels, -1, 0)
        else:
            pixels = pixels[None]
        return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))

    def read(self, index: int) -> Sample:
        return Sample(self._pixels(index), self.records[index])

    def content_hash(self, index: int) -> str:
        pixels = self._pixels(index)
        return hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def _load(path: Path) -> Any:
    """What numpy reads, after a look at the first bytes: numpy calls any unknown file a pickle."""
    with path.open("rb") as file:
        start = file.read(6)
    if start != b"\x93NUMPY" and start[:2] != b"PK":
        raise ValueError("the file does not begin like a numpy file")
    return np.load(path, allow_pickle=False, mmap_mode="r" if start[:2] != b"PK" else None)


def _member(path: Path, key: str) -> np.ndarray:
    """One array of an .npz. A large one is unpacked to an unnamed file and mapped: beside the reduced images of the
    cache, no second copy is held in memory. Raises ValueError when the bytes are not those the header declares."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.getinfo(f"{key}.npy")) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(member)
        needed, stored = math.prod(shape) * kind.itemsize, archive.getinfo(f"{key}.npy").file_size
        if kind.hasobject:
            raise ValueError("Object arrays hold Python objects (pickle)")
        if not 0 <= stored - needed < 2**16:
            raise ValueError(f"{key}: its header claims {needed:,} bytes and there are {stored:,}")
        order: Literal["F", "C"] = "F" if by_columns else "C"
        if needed <= MAPPED_ABOVE:
            data = member.read()
            if len(data) != needed:
                raise EOFError(f"{key} is cut off")
            return np.frombuffer(data, kind).reshape(shape, order=order)
        with tempfile.TemporaryFile(prefix="saccade-npz-") as file:
            try:
                shutil.copyfileobj(member, file, 2**20)
                file.flush()
            except OSError as error:
                raise StorageError(
                    f"{path}: no room to unpack it in {tempfile.gettempdir()}",
                    got=error.strerror,
                    hint="set TMPDIR to a larger disk",
                ) from error
            return np.memmap(file, kind, "r", shape=shape, order=order)


def _parts(path: Path) -> list[Part]:
    try:
        loaded = _load(path)
        if isinstance(loaded, np.ndarray):
            return [(None, loaded, None)]
        with loaded:
            keys = set(loaded.files)
            parts: list[Part] = [
                (part, _member(path, f"{part}_images"), loaded[f"{part}_labels"] if f"{part}_labels" in keys else None)
                for part in PARTS
                if f"{part}_images" in keys
            ]
            if not parts and "images" in keys:
                parts = [(None, _member(path, "images"), loaded["labels"] if "labels" in keys else None)]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        pickled = "pickle" in str(error).lower() or "Python objects" in str(error)
        raise DataError(
            f"{path}: " + ("holds pickled objects, which can run code" if pickled else "incomplete array file"),
            got=first_line(error),
            hint="save plain number arrays with numpy.savez" if pickled else "copy it again",
        ) from error
    if not parts:
        raise DataError(
            f"{path}: not in the MedMNIST layout",
            got=", ".join(sorted(keys)) or "no arrays",
            expected="train_images, train_labels, ..., or images and labels",
        )
    return parts


def _layout(images: Any, name: str) -> Layout:
    """What the axes mean. Where a channel axis could also be a depth, an error asks for the layout."""
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        got = f"shape {images.shape}, {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{name}: not a stack of images", got=got, expected="numbers, [N Y X], [N Y X 3] or [N T Y X]")
    if images.ndim == 3 or images.shape[-1] == 1:
        return "grey"
    if images.shape[-1] == 3:
        return "colour"
    if images.shape[-1] in (2, 4) or images.shape[1] <= 4:
        raise DataError(
            f"{name}: ambiguous axes: channels or depth",
            got=f"shape {images.shape}",
            expected="[N Y X], [N Y X 3], or volumes [N T Y X] with more than 4 slices",
            hint="put the channels last, images.transpose(0, 2, 3, 1), and keep one or three of them",
        )
    return "volume"


def _label(value: Any) -> str | None:
    """A label as text: 1.0 and 1 are one class, as numbers with gaps are stored as floats; None where it is missing."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.strip() or None


def _check_labels(images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
    if labels is not None and (not labels.ndim or len(labels) != len(images)):
        count = len(labels) if labels.ndim else "a single value"
        raise DataError(f"{name}: labels and images differ in number", got=f"{count} and {len(images)}")
