"""Encoded bytes to pixels [C Y X], in the number type of the file. Nothing is rescaled or clipped.

Traps avoided here: Pillow turns 16-bit colour into 8 bits, its ``convert("RGB")`` turns every 16-bit value
above 255 into white, and it reads many-channel TIFF not at all; 16-bit PNG and all TIFF go to other decoders.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps

from saccade.errors import DamagedFile

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 500_000_000  # of one channel; more is a lying header or a slide
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MARK = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode PNG, JPEG, TIFF, BMP or WebP, recognised by content. Returns [C Y X].

    Palettes become RGB, one bit becomes 0 and 255, CMYK becomes RGB, the EXIF orientation is applied.
    An alpha channel is dropped when opaque everywhere; otherwise the image is laid over white.
    Raises DamagedFile, naming the file, for anything that is not a whole image.
    """
    if not data:
        raise DamagedFile(f"{name}: empty file", hint="copy it again from where it came")
    try:
        if data[:4] in TIFF_MARKS:
            pixels = _tiff(data, name)
        elif data[:8] == PNG_MARK and len(data) > 25 and data[24] == 16:
            pixels = _png16(data, name)
        else:
            pixels = _pillow(data, name)
    except DamagedFile:
        raise
    except MemoryError as error:
        raise DamagedFile(f"{name}: its header asks for more memory than there is") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(
            f"{name}: cannot be decoded ({reason})", hint="open it in a viewer, or copy it again"
        ) from error
    return np.ascontiguousarray(_without_alpha(pixels) if pixels.shape[0] in (2, 4) and _has_alpha(data) else pixels)


def _check_size(rows: int, columns: int, name: str) -> None:
    if rows * columns > MAX_PIXELS or rows < 1 or columns < 1:
        raise DamagedFile(
            f"{name}: its header claims {rows} x {columns} pixels",
            expected=f"at most {MAX_PIXELS:,} pixels",
            hint="cut a slide into tiles first",
        )


def _pillow(data: bytes, name: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image: Image.Image = Image.open(io.BytesIO(data))
        _check_size(image.height, image.width, name)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        elif image.mode == "1":
            image = image.convert("L")
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _png16(data: bytes, name: str) -> np.ndarray:
    import imagecodecs

    columns, rows = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    _check_size(rows, columns, name)
    pixels = imagecodecs.png_decode(data)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _tiff(data: bytes, name: str) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        axes, shape = series.axes, series.shape
        sizes = dict(zip(axes, shape))
        _check_size(sizes.get("Y", 0), sizes.get("X", 0), name)
        extra = [a for a in axes if a not in "YXCS" and sizes[a] > 1]
        channel = [a for a in axes if a in "CS" and sizes[a] > 1]
        if extra or len(channel) > 1:
            raise DamagedFile(
                f"{name}: a stack, not an image",
                got=f"axes {axes}, shape {shape}",
                expected="rows, columns and at most one channel axis",
                hint="save one plane as an image; volumes are not read as images",
            )
        if np.prod(shape, dtype=np.int64) * series.dtype.itemsize > 8 * MAX_PIXELS:
            raise DamagedFile(f"{name}: its header claims shape {shape}", hint="cut a slide into tiles first")
        page: Any = file.pages[0]
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        if palette:
            return _pillow(data, name)
        pixels = series.asarray()
        order = [i for i, a in enumerate(axes) if a in "YX"]
        kept = [axes.index(channel[0]), *order] if channel else order
        pixels = np.transpose(pixels, kept + [i for i in range(len(axes)) if i not in kept])
        pixels = pixels.reshape([int(n) for n in pixels.shape[: len(kept)]])
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if inverted and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels[None] if pixels.ndim == 2 else pixels


def _has_alpha(data: bytes) -> bool:
    """Whether the last of two or four channels is transparency: always, except in TIFF, where a tag says so."""
    if data[:4] not in TIFF_MARKS:
        return True
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        marks = getattr(file.pages[0], "extrasamples", ()) or ()
    return len(marks) == 1 and int(marks[0]) in (1, 2)


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    colour, alpha = pixels[:-1], pixels[-1]
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
    if (alpha == top).all():
        return colour
    share = alpha.astype(np.float64) / top
    laid = colour * share + top * (1 - share)
    return (np.rint(laid) if pixels.dtype.kind == "u" else laid).astype(pixels.dtype)
