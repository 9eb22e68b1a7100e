"""Smaller, but the same picture: antialiased reduction of images and volumes, and the number of channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from saccade.errors import DamagedFile

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
MAX_ASPECT = 8  # a batch is padded to its largest rows and columns: one wide and one tall image fill it with padding
SLAB = 16  # slices reduced at a time, so that no float copy of a whole volume is held


def convert_channels(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Grey becomes colour by repetition, colour becomes grey by luminance; anything else is an error."""
    have = pixels.shape[0]
    if have == channels:
        return pixels
    if have == 1:
        return np.repeat(pixels, channels, axis=0)
    if have == 3 and channels == 1:
        grey = np.tensordot(np.array(LUMINANCE, np.float32), pixels.astype(np.float32), axes=1)[None]
        return np.rint(grey).astype(pixels.dtype) if pixels.dtype.kind == "u" else grey
    raise DamagedFile(
        f"{name}: number of channels differs from the rest of the data",
        got=f"{have} channels",
        expected=f"{channels} channels",
        hint="keep images with different channels in separate folders",
    )


def finite(pixels: np.ndarray, name: str) -> np.ndarray:
    """The same pixels. Raises DamagedFile, naming the image, where some are not finite in float32."""
    with np.errstate(over="ignore"):
        numbers = pixels.dtype.kind != "f" or np.isfinite(pixels.astype(np.float32, copy=False)).all()
    if not numbers:
        raise DamagedFile(f"{name}: contains NaN or infinite values", hint="replace them by numbers")
    return pixels


def to_supported_dtype(pixels: np.ndarray) -> np.ndarray:
    """uint8, uint16 and float32 stay; everything else becomes float32 (exact up to 24 bits)."""
    if pixels.dtype in (np.uint8, np.uint16, np.float32):
        return pixels
    return pixels.astype(np.float32)


def shrink(pixels: np.ndarray, shorter_px: int) -> np.ndarray:
    """[C Y X] shrunk (never enlarged) so that the shorter side is ``shorter_px``; same number type.

    The longer side is at most MAX_ASPECT times ``shorter_px``; of longer images it alone is reduced.
    """
    return _planes(pixels, shrunk_sides(pixels.shape[-2:], shorter_px))


def shrunk_sides(sides: Sequence[int], shorter_px: int) -> tuple[int, int]:
    """Rows and columns to which ``shrink`` reduces an image.

    Examples
    --------
    >>> shrunk_sides((200, 100), 50), shrunk_sides((24, 4000), 50)
    ((100, 50), (24, 400))
    """
    factor = min(1.0, shorter_px / min(sides))
    rows, columns = (min(max(1, round(side * factor)), MAX_ASPECT * shorter_px) for side in sides)
    return rows, columns


def even_sides(shape: Sequence[int], spacing_mm: Sequence[float], voxel_mm: float) -> tuple[int, ...]:
    """The sides of a volume after no axis is sampled finer than ``voxel_mm``; coarser ones stay as they are."""
    return tuple(max(1, min(n, round(n * mm / voxel_mm))) for n, mm in zip(shape, spacing_mm))


def shrink_volume(pixels: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """[C T Y X] shrunk to ``sides`` (slices, rows, columns); same number type."""
    if pixels.shape[1:] == sides:
        return np.ascontiguousarray(pixels)
    channels, slices = pixels.shape[:2]
    flat = np.empty((channels, slices, *sides[1:]), pixels.dtype)
    for channel in range(channels):
        for start in range(0, slices, SLAB):
            part = slice(start, start + SLAB)
            flat[channel, part] = _planes(pixels[channel, part], (sides[1], sides[2]))
    upright = _planes(flat.reshape(channels, slices, -1), (sides[0], sides[1] * sides[2]))
    return upright.reshape(channels, *sides)


def _planes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The last two axes brought to ``size``; antialiased, same number type."""
    if pixels.shape[-2:] == size:
        return np.ascontiguousarray(pixels)
    small = F.interpolate(
        torch.from_numpy(pixels.astype(np.float32))[None], size=size, mode="bilinear", antialias=True
    )[0].numpy()
    if pixels.dtype.kind in "ui":
        limits = np.iinfo(pixels.dtype)
        small = np.rint(small).clip(limits.min, limits.max)
    return small.astype(pixels.dtype)
