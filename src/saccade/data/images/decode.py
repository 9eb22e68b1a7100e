"""Encoded bytes to pixels [C Y X], in the number type of the file. Nothing is rescaled or clipped.

Traps avoided here: Pillow turns 16-bit colour into 8 bits, its ``convert("RGB")`` turns every 16-bit value
above 255 into white, and it reads many-channel TIFF not at all; 16-bit PNG and all TIFF go to other decoders.
A JPEG whose inner bytes are wrong but which is whole cannot be told from a good one; a cut one can.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tifffile
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from saccade.data.formats import PNG_MAGIC, by_content, by_name
from saccade.data.images.coded_size import coded_size, jpeg_2000_pixel_bytes
from saccade.data.images.tiff import check_pieces, main_series, samples_dtype, to_samples
from saccade.data.limits import MAX_SCANS, PIXELS, check_claim, check_image, damage_named
from saccade.errors import DamagedFile

PILLOW_FORMATS = (
    "PNG",
    "JPEG",
    "TIFF",
    "BMP",
    "WEBP",
    "GIF",
    "PPM",
)  # named, so that no other parser (EPS!) sees the bytes
PIXEL_BYTES = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "P": 3}
"""Bytes of a pixel, by the mode of Pillow, where that is not the number of channels."""
SAMPLES_OF_PNG = {0: 1, 2: 3, 4: 2}  # by colour type
START_OF_SCAN = b"\xff\xda"
INKS = (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.SEPARATED)
LAB = (tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB, tifffile.PHOTOMETRIC.ITULAB)
MISTAKEN = {
    b"version https://git-lfs": "this is a git-lfs pointer; fetch the file itself with git lfs pull",
    b"<": "this is a web page or XML, not the image; download it again",
}


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode an image in any format of ``saccade.data.formats``.

    A format with fixed first bytes is recognised by these, whatever the file is called; others by their suffix.
    Palettes and CMYK become RGB, one bit becomes 0 and 255, and the orientation tag of JPEG, TIFF and 8-bit PNG is
    applied. An alpha channel that is opaque everywhere is dropped; otherwise the image is composed over white.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        File name, for its suffix and for messages.

    Returns
    -------
    ndarray
        [C Y X] in the number type of the file.

    Raises
    ------
    DamagedFile
        The bytes are not one whole image, e.g. cut off, a stack, or too large. The message names the file.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    >>> decode(buffer.getvalue(), "red.png").shape
    (3, 3, 4)
    """
    if not data:
        raise DamagedFile(f"{name}: empty file", hint="copy it again from where it came")
    with damage_named(name, "cannot be decoded", "open it in a viewer, or copy it again"):
        pixels: np.ndarray = _reader(data, name)(data, name)
    if pixels.dtype.kind not in "uif":
        raise DamagedFile(f"{name}: unsupported pixel type", got=pixels.dtype)
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def decode_mask(data: bytes, name: str, *, constant: bool = False) -> np.ndarray:
    """Decode a mask file as bool [Y X]: true where any colour is above 0 and, with an alpha channel, not transparent.

    Raises DamagedFile like ``decode``, and, unless ``constant``, for a mask that is the same everywhere.
    """
    pixels = decode(data, name)
    if _reader(data, name) in (read_png, read_pillow):
        raw = _pillow(data, name)
        if len(raw) in (2, 4):  # some draw the mask into the alpha channel; laid over white it would be gone
            pixels = raw[:-1] * (raw[-1:] > 0)
    inside: np.ndarray = np.any(pixels > 0, axis=0)
    if not constant and (inside.all() or not inside.any()):
        raise DamagedFile(f"{name}: the mask is the same everywhere", hint="a mask is 0 outside and above 0 inside")
    return inside


def _reader(data: bytes, name: str) -> Callable[[bytes, str], np.ndarray]:
    volume = by_name(name, "volume")
    if data[128:132] == b"DICM" or (volume is not None and volume.name == "DICOM"):
        return _dicom_image
    card = by_name(name, "image")
    if card is None or (card.magic and not data.startswith(card.magic)):
        card = by_content(data, "image")
    return card.load() if card else read_pillow


def _dicom_image(data: bytes, name: str) -> np.ndarray:
    from saccade.data.volumes.dicom import read_image  # pydicom is slow to import

    return read_image(data, name)


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_pillow(data: bytes, name: str) -> np.ndarray:
    """JPEG, BMP, WebP, GIF and 8-bit PNG."""
    return _over_white(_pillow(data, name))


def read_png(data: bytes, name: str) -> np.ndarray:
    """PNG of any depth."""
    if data.startswith(PNG_MAGIC) and len(data) > 25 and data[24] == 16:
        return _over_white(_png16(data, name))
    return read_pillow(data, name)


def read_jpeg2000(data: bytes, name: str) -> np.ndarray:
    """JPEG 2000 of up to 16 bits; the size is read from the SIZ segment before anything is decoded."""
    import imagecodecs

    size = coded_size(data)
    if size is None:
        raise DamagedFile(f"{name}: no JPEG 2000 code stream", hint="copy it again")
    check_image(*size, jpeg_2000_pixel_bytes(data), len(data), name)
    return _over_white(_channels_first(imagecodecs.jpeg2k_decode(data)))


def read_pnm(data: bytes, name: str) -> np.ndarray:
    """PBM, PGM and PPM. Colour of 16 bits is refused: Pillow reduces it to 8 bits."""
    header = re.match(rb"P[36]\s(?:\s*#[^\n]*\n)*\s*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*(\d+)", data)
    if header and int(header[1]) > 255:
        raise DamagedFile(f"{name}: colour of more than 8 bits in PPM", hint="save it as PNG or TIFF")
    return read_pillow(data, name)


def _opened(data: bytes, name: str) -> ImageFile.ImageFile:
    """The header of an image. Raises DamagedFile for unknown formats, and for images that take long to decode."""
    if PIXELS.value > PIXELS.default:
        Image.MAX_IMAGE_PIXELS = PIXELS.value  # Pillow's own limit; raised where the user raised ours
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except Image.DecompressionBombError as error:
        raise DamagedFile(
            f"{name}: its header claims more than {2 * PIXELS.default:,} pixels",
            expected=f"at most {PIXELS.value:,} pixels",
            hint=f"cut a slide into tiles first; or set {PIXELS.variable} to the number of its pixels",
        ) from error
    except UnidentifiedImageError as error:
        hint = next((text for start, text in MISTAKEN.items() if data.lstrip().startswith(start)), None)
        raise DamagedFile(f"{name}: unknown image format", hint=hint) from error
    scans = data.count(START_OF_SCAN) if image.format == "JPEG" else 0
    if scans > MAX_SCANS:
        raise DamagedFile(f"{name}: a JPEG of {scans:,} scans", expected=f"at most {MAX_SCANS}", hint="save it again")
    return image


def _pillow(data: bytes, name: str) -> np.ndarray:
    image: Image.Image = _opened(data, name)
    check_image(image.height, image.width, PIXEL_BYTES.get(image.mode, len(image.getbands())), len(data), name)
    if image.format == "GIF" and getattr(image, "is_animated", False):
        raise DamagedFile(f"{name}: an animation, not an image", hint="save one frame as an image")
    image.load()
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode == "PA":  # also one colour declared transparent
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B"):
        image = image.convert("RGB")
    return _channels_first(np.asarray(image))


def _png16(data: bytes, name: str) -> np.ndarray:
    import imagecodecs

    columns, rows = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    check_image(rows, columns, 2 * SAMPLES_OF_PNG.get(data[25], 4), len(data), name)
    return _channels_first(imagecodecs.png_decode(data))


# --- TIFF -----------------------------------------------------------------------------------------


def read_tiff(data: bytes, name: str) -> np.ndarray:
    """The first series of a TIFF; its rows, columns and at most one channel axis, alpha resolved."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = main_series(file, name)
        page = cast(Any, series.keyframe)
        channel = _channel_axis(series.axes, series.shape, name)
        check_pieces(series, len(data), name)
        check_claim(math.prod(series.shape) * samples_dtype(page).itemsize, len(data), name)
        if page.photometric in LAB or _is_subsampled(page):
            raise DamagedFile(
                f"{name}: unsupported colour space",
                got=f"{page.photometric.name}, {page.compression.name}",
                expected="RGB, grey, a palette, CMYK, or YCbCr in JPEG",
                hint="save it as RGB",
            )
        if page.photometric in INKS or _is_plain_ycbcr(page):
            return _over_white(_pillow(data, name))
        axes = [i for i, axis in enumerate(series.axes) if axis == channel or axis in "YX"]
        if channel:
            axes.sort(key=lambda i: series.axes[i] != channel)
        order = axes + [i for i in range(len(series.axes)) if i not in axes]
        pixels = series.asarray().transpose(order)
        pixels = pixels.reshape([int(n) for n in pixels.shape[: len(axes)]])
        if pixels.ndim == 2:
            pixels = pixels[None]
        pixels = to_samples(pixels, page)
        extra = [int(mark) for mark in page.extrasamples]
        if extra in ([1], [2]) and len(pixels) in (2, 4):
            pixels = _over_white(pixels, premultiplied=extra == [1])
        orientation = page.tags.get(274)
        return _upright(pixels, int(orientation.value) if orientation else 1)


def _is_plain_ycbcr(page: Any) -> bool:
    """Luminance and two differences as plain numbers; in JPEG data the decoder makes RGB of them."""
    jpeg = (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
    return page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression not in jpeg


def _is_subsampled(page: Any) -> bool:
    """Plain YCbCr in which several pixels share their colour: TIFF 6.0, tag 530, 2 x 2 where it is not there."""
    shared = page.tags.get(530)
    return _is_plain_ycbcr(page) and (shared is None or tuple(shared.value) != (1, 1))


def _channel_axis(axes: str, shape: tuple[int, ...], name: str) -> str | None:
    sizes = dict(zip(axes, shape))
    check_image(sizes.get("Y", 0), sizes.get("X", 0), 0, 0, name)
    others = [axis for axis in axes if axis not in "YX" and sizes[axis] > 1]
    if len(others) > 1 or any(axis not in "CS" for axis in others):
        raise DamagedFile(
            f"{name}: a stack, not an image",
            got=f"axes {axes}, shape {shape}",
            expected="rows, columns and at most one channel axis (OME axes CYX, or samples of a pixel)",
            hint="save one plane as an image, or the channels as OME-TIFF",
        )
    return others[0] if others else None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """TIFF 6.0, tag 274: 2 to 4 are flips, 5 to 8 the same after exchanging rows and columns."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return pixels


# --- transparency ---------------------------------------------------------------------------------


def _over_white(pixels: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """[1 or 3 Y X] from two or four channels of which the last is alpha; anything else as it is."""
    if len(pixels) not in (2, 4):
        return pixels
    colour, alpha = pixels[:-1], pixels[-1]
    is_integer = pixels.dtype.kind in "ui"
    top = np.iinfo(pixels.dtype).max if is_integer else 1.0
    if (alpha == top).all():
        return colour
    share = alpha.astype(np.float64) / top
    laid = (colour if premultiplied else colour * share) + top * (1 - share)
    return (np.rint(laid).clip(0, top) if is_integer else laid).astype(pixels.dtype)
