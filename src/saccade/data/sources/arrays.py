"""Arrays on disk: ``.npz`` in the MedMNIST layout (Yang et al. 2023) and plain ``.npy`` stacks."""

from __future__ import annotations

import errno
import hashlib
import math
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.data.limits import check_ratio, check_table
from saccade.data.volumes.volume import LONGEST_HEADER, npy_header
from saccade.errors import DamagedFile, DataError, StorageError, first_line

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
            self._stacks.append(images)
            for i in range(len(images)):
                label = _label(labels[i].item()) if labels is not None else None
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


@dataclass(frozen=True)
class _Header:
    """What an array of an .npz claims: shape, order, number type, and bytes before its numbers."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: zipfile.ZipFile, key: str, path: Path) -> _Header:
    """The header of one array, compared with what is stored. Raises ValueError, DamagedFile."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        header = _Header(*npy_header(member.read(LONGEST_HEADER)))
    if header.dtype.hasobject:
        raise ValueError("Object arrays hold Python objects (pickle)")
    if header.start + header.bytes != info.file_size:
        raise ValueError(f"{key}: its header claims {header.bytes:,} bytes and there are {info.file_size:,}")
    check_ratio(header.bytes, info.compress_size, f"{path}:{key}")
    return header


def _images(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    """An array of images. A large one is unpacked to an unnamed file and mapped: beside the reduced images of the
    cache, no second copy is held in memory. Raises ValueError when the bytes are not those the header declares."""
    header = _header(archive, key, path)
    order: Literal["F", "C"] = "F" if header.by_columns else "C"
    with archive.open(f"{key}.npy") as member:
        member.read(header.start)
        if header.bytes <= MAPPED_ABOVE:
            data = member.read()
            if len(data) != header.bytes:
                raise EOFError(f"{key} is cut off")
            return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)
        with tempfile.TemporaryFile(prefix="saccade-npz-") as file:
            free = shutil.disk_usage(tempfile.gettempdir()).free
            try:
                if header.bytes > free:
                    raise OSError(errno.ENOSPC, f"{header.bytes:,} bytes are needed and {free:,} are free")
                shutil.copyfileobj(member, file, 2**20)
                file.flush()
            except OSError as error:
                raise StorageError(
                    f"{path}: no room to unpack it in {tempfile.gettempdir()}",
                    got=error.strerror,
                    hint="set TMPDIR to a larger disk",
                ) from error
            return np.memmap(file, header.dtype, "r", shape=header.shape, order=order)


def _labels(archive: zipfile.ZipFile, key: str, images: np.ndarray, path: Path) -> np.ndarray | None:
    """The labels of these images; None where there are none, or several for each image, which are left out."""
    if f"{key}.npy" not in archive.namelist():
        return None
    header = _header(archive, key, path)
    name = f"{path}:{key.removesuffix('labels')}images"
    if not header.shape or header.shape[0] != len(images):
        count = header.shape[0] if header.shape else "a single value"
        raise DataError(f"{name}: labels and images differ in number", got=f"{count} and {len(images)}")
    if math.prod(header.shape[1:]) != 1:
        return None
    check_table(header.bytes, f"{path}:{key}")
    with archive.open(f"{key}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _parts(path: Path) -> list[Part]:
    with path.open("rb") as file:
        start = file.read(6)
    try:
        if start == b"\x93NUMPY":
            return [(None, np.load(path, allow_pickle=False, mmap_mode="r"), None)]
        if start[:2] != b"PK":  # numpy calls any unknown file a pickle
            raise ValueError("the file does not begin like a numpy file")
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
            named: list[tuple[str | None, str]] = [(part, f"{part}_") for part in PARTS if f"{part}_images" in keys]
            parts: list[Part] = []
            for split, prefix in named or ([(None, "")] if "images" in keys else []):
                images = _images(archive, f"{prefix}images", path)
                parts.append((split, images, _labels(archive, f"{prefix}labels", images, path)))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        pickled = "pickle" in str(error).lower() or "Python objects" in str(error)
        raise DamagedFile(
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
    if 0 in images.shape[1:]:
        raise DataError(f"{name}: images without pixels", got=f"shape {images.shape}")
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
