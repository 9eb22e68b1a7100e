"""Which of the images in a TIFF is the image, and what its samples mean (TIFF 6.0, sections 3 to 6; OME-TIFF).

Every reader of TIFF in saccade (images, stacks, slides) goes through this file.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import tifffile

from saccade.data.limits import MAX_PLANES
from saccade.errors import DamagedFile

DOCUMENT_TYPE = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
COUNTS = ("PlaneCount", "NumPlanes", "FirstZ", "FirstC", "FirstT", "IFD")
"""Attributes of TiffData, of which tifffile takes the numbers as they are."""
ASIDE = ("label", "macro", "thumbnail", "overview")
"""Words in the name of a series, as Aperio, Ventana and OME files have them, that is never the image."""
SHORT = 60  # characters of a name; descriptions in XML and of scanners are longer and may hold any word


def main_series(file: tifffile.TiffFile, name: str) -> Any:
    """The image of a file: of its series that are not reduced copies, labels or overviews, the largest.

    Raises DamagedFile where there is none, where planes of an OME-TIFF are in other files that are not there, and as
    ``check_text``.
    """
    check_text(file, name)
    series: list[Any] = [item for item in file.series if _word_of(item) is None]
    full_size = [item for item in series if not item.keyframe.is_reduced] or series
    if not full_size:
        raise DamagedFile(f"{name}: no image in this TIFF", hint="copy it again")
    main = max(full_size, key=lambda item: item.keyframe.imagewidth * item.keyframe.imagelength)
    check_complete(main, name)
    return main


def refuse_document_type(text: str, name: str) -> None:
    """Raise DamagedFile for XML with a document type definition: it may define entities without end."""
    if DOCUMENT_TYPE.search(text):
        raise DamagedFile(f"{name}: its XML has a document type definition, which is not read", hint="remove it")


def parse_xml(text: str, name: str) -> Element:
    """The root of XML. Raises DamagedFile for a document type definition; ParseError."""
    refuse_document_type(text, name)
    return ElementTree.fromstring(text)


def check_text(file: tifffile.TiffFile, name: str) -> None:
    """Raise DamagedFile where the text of a file (OME-XML, Micro-Manager) claims more planes than a file can have, or
    planes in files of other folders.

    Without a look before, tifffile makes a list of as many planes as the text says.
    """
    if not len(file.pages):
        raise DamagedFile(f"{name}: no image in this TIFF", hint="copy it again")
    page = file.pages.first.aspage()
    refuse_document_type(page.description + page.description1, name)
    claims = _planes_in_ome(file.ome_metadata, name) if file.is_ome else []
    if file.is_mmstack:
        index = (file.micromanager_metadata or {})["IndexMap"][:, :4].astype(np.float64)
        claims.append(math.prod(index.max(axis=0) + 1))
    if max(claims, default=0) > MAX_PLANES:
        raise DamagedFile(
            f"{name}: its header claims {max(claims):,.0f} planes",
            expected=f"at most {MAX_PLANES:,}",
            hint="copy it again",
        )


def _planes_in_ome(xml: str | None, name: str) -> list[float]:
    """Every number of planes in OME-XML; empty where it cannot be parsed, which tifffile says."""
    try:
        root = parse_xml(xml or "", name)
    except ElementTree.ParseError:
        return []
    counts = []
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind == "Pixels":
            counts.append(math.prod(float(element.get(f"Size{axis}", "1")) for axis in "ZCT"))
        elif kind == "UUID" and element.text != root.get("UUID"):
            path = element.get("FileName", "")
            if PurePosixPath(path.replace("\\", "/")).name != path:
                raise DamagedFile(f"{name}: planes outside its folder", got=path, expected="names of files beside it")
        elif kind == "TiffData":
            counts += [float(value) for key, value in element.attrib.items() if key in COUNTS]
        elif kind.startswith("Along") and element.get("Start"):
            span = float(element.get("End", "0")) - float(element.get("Start", "0"))
            counts.append(span / (float(element.get("Step", "1")) or 1.0))
    return counts


def check_pieces(series: Any, length: int, name: str) -> None:
    """``check_page`` for the pages of a series in a file of ``length`` bytes."""
    for page in series.pages:
        if page is not None:
            check_page(page, length, name)


def check_page(page: Any, length: int, name: str) -> None:
    """Raise DamagedFile where the tiles or strips of a page are fewer than its size needs, or beyond the end.

    A cut strip of JPEG data decodes to grey without an error, and missing tiles of a huge page are looked for one by
    one.
    """
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
    if max(ends, default=0) > length:
        raise DamagedFile(
            f"{name}: the file is cut off",
            got=f"{length:,} bytes",
            expected=f"{max(ends):,} bytes",
            hint="copy it again",
        )
    check_count(page, name)


def check_count(page: Any, name: str) -> None:
    """Raise DamagedFile where a page has fewer tiles or strips than its size needs."""
    keyframe, count = page.keyframe, len(page.dataoffsets)
    needed = math.prod(keyframe.chunked)
    if needed > count and not (keyframe.compression == 1 and keyframe.nbytes <= sum(page.databytecounts)):
        raise DamagedFile(
            f"{name}: its header claims {keyframe.imagelength:,} x {keyframe.imagewidth:,} pixels",
            got=f"{count:,} {'tiles' if keyframe.is_tiled else 'strips'}",
            expected=f"{needed:,}",
            hint="copy it again",
        )


def series_left_aside(series: Iterable[Any], main: Any) -> list[str]:
    """What the other images of a file are: label, macro, thumbnail, overview, or name and size; no reduced copies."""
    aside: list[str] = []
    for item in series:
        word = _word_of(item)
        if item is main or (word is None and item.keyframe.is_reduced):
            continue
        rows, columns = item.keyframe.imagelength, item.keyframe.imagewidth
        aside.append(word or f"{item.name or 'series'} of {rows:,} x {columns:,} px")
    return aside


def images_left_aside(data: bytes) -> list[str]:
    """``series_left_aside`` of the bytes of a TIFF; nothing for what cannot be read, which is named elsewhere."""
    try:
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            main = main_series(file, "")  # before file.series, which takes the numbers of its text as they are
            return series_left_aside(file.series, main)
    except Exception:  # tifffile raises nearly anything on broken bytes
        return []


def _word_of(series: Any) -> str | None:
    """Which of ASIDE the name of a series, its PageName or a short ImageDescription holds; None for an image."""
    page = series.keyframe
    page_name = page.tags.get("PageName")
    texts = [series.name or "", str(page_name.value) if page_name else "", page.description]
    text = " ".join(text for text in texts if len(text) <= SHORT).lower()
    return next((word for word in ASIDE if re.search(rf"(?<![a-z]){word}(?![a-z])", text)), None)


def check_complete(series: Any, name: str) -> None:
    """Raise DamagedFile where planes of a series are in other files that cannot be reached."""
    missing = sum(page is None for page in series.pages)
    if missing:
        raise DamagedFile(
            f"{name}: {missing:,} of its {len(series.pages):,} planes are in other files",
            hint="an OME-TIFF of several files: save it as one file, or keep a slide and its files in one folder",
        )


def samples_dtype(page: Any) -> np.dtype:
    """The number type of ``to_samples`` for a page: uint8 for one bit, else that of the file."""
    return np.dtype(np.uint8 if page.dtype == bool else page.dtype)


def to_samples(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Stored samples as numbers that grow with brightness; up to 8 bits they span 0 to 255.

    Parameters
    ----------
    pixels : ndarray
        Samples as tifffile unpacks them: 2- and 4-bit samples are 0 to 3 and 0 to 15.
    page : tifffile.TiffPage
        The page, for its bits per sample and photometric interpretation.

    Returns
    -------
    ndarray
        Of the same shape. Samples of 9 to 15 bits keep their numbers. MINISWHITE is inverted within the bits of a
        sample; of float samples, whose nominal range is 0 to 1, within that.
    """
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return pixels
    bits = _bits(page)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
        bits = 1
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        if pixels.dtype.kind == "u":
            pixels = (2**bits - 1) - pixels
        elif pixels.dtype.kind == "i":
            pixels = ~pixels
        elif pixels.dtype.kind == "f":
            pixels = 1 - pixels
    if bits < 8 and pixels.dtype == np.uint8:
        pixels = np.rint(pixels.astype(np.float32) * (255 / (2**bits - 1))).astype(np.uint8)
    return pixels


def _bits(page: Any) -> int:
    """Bits of one sample; all samples of a page have the same number."""
    stored = page.bitspersample
    bits = int(stored[0] if isinstance(stored, tuple) else stored)
    return bits or 8 * page.dtype.itemsize
