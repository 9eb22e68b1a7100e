"""Every file format that saccade reads, one card each: the only table of suffixes.

A new format is one file with its reader and one line in ``BUILT_IN``; docs/guides/extend.md shows it. Other packages
add a card through the entry point group ``saccade.sources``, without a change in saccade. Readers are named by their
import path and loaded on first use, so that this module costs nothing to import.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from saccade.base.plugins import installed_cards
from saccade.errors import UsageError

Kind = Literal["image", "volume", "slide", "archive", "array", "table", "features"]
GROUP = "saccade.sources"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0 and BigTIFF, both byte orders
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TEXT_SUFFIXES = (".json", ".txt", ".md")
"""Notes that may lie in any folder of data; they are never read as data."""


@dataclass(frozen=True)
class Format:
    """One file format.

    Parameters
    ----------
    name : str
        As users know it, e.g. ``"NIfTI"``.
    kind : {"image", "volume", "slide", "archive", "array", "table", "features"}
        What a file holds, which decides the signature of ``reader``.
    suffixes : tuple of str
        File name endings in lower case, with the dot. Of several that match a name the longest counts.
    reader : str or callable
        A function, or its import path ``"package.module:function"``:

        - image: ``(data: bytes, name: str) -> ndarray`` [C Y X]
        - volume: ``(data: bytes, name: str, beside: Callable[[str], bytes]) -> Volume``; ``beside`` reads another
          file of the same folder
        - slide: ``(path: Path) -> Reader`` (``saccade.data.slides.reader``)
        - archive: ``(path: Path, *, manifest, label, group, keep_na) -> Source``
        - array: ``(path: Path) -> Source``; one file with many images or volumes
        - table: ``(data: bytes, name: str) -> list[dict[str, str]]``; column names in lower case
        - features: ``(path: Path) -> SlideFeatures``
    description : str
        One line for listings.
    standard : str
        The document that defines the format.
    magic : tuple of bytes
        What a file begins with; empty where nothing is fixed.
    extra : str
        The extra of saccade (``pip install "saccade[extra]"``) that the reader needs; empty for none.
    shared : bool
        Other formats use the same suffixes, so the content decides, not the name.
    parts : str or callable
        Slides of several files: a function from the path of the slide to its other files; empty for none.

    Examples
    --------
    >>> card = Format("PGM", "image", (".pgm",), "my_package.pgm:read_pgm", "Portable graymap")
    >>> card.matches("scan_01.PGM")
    True
    """

    name: str
    kind: Kind
    suffixes: tuple[str, ...]
    reader: str | Callable[..., Any]
    description: str
    standard: str = ""
    magic: tuple[bytes, ...] = ()
    extra: str = ""
    shared: bool = False
    parts: str | Callable[..., Any] = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(
                f"file format {self.name}: unknown kind {self.kind!r}", expected=" or ".join(get_args(Kind))
            )
        if not self.suffixes or any(not s.startswith(".") or s != s.lower() for s in self.suffixes):
            raise UsageError(
                f"file format {self.name}: invalid suffixes",
                got=self.suffixes,
                expected="lower case endings with a dot, e.g. ('.xyz',)",
            )

    def matches(self, name: str) -> bool:
        """Whether a file name ends in one of the suffixes, in any case."""
        return name.lower().endswith(self.suffixes)

    def load(self) -> Callable[..., Any]:
        """The reader, imported."""
        return _function(self.reader)

    def load_parts(self) -> Callable[..., Any] | None:
        """The function that lists the other files of a slide; None for formats of one file."""
        return _function(self.parts) if self.parts else None


def _function(where: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(where, str):
        return where
    module, _, name = where.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


_DECODE, _VOLUMES, _SLIDES = "saccade.data.images.decode", "saccade.data.volumes", "saccade.data.slides"
_SOURCES, _OPENSLIDE = "saccade.data.sources", "saccade.data.slides.readers:open_scanner_file"
BUILT_IN: tuple[Format, ...] = (
    # --- images
    Format("PNG", "image", (".png",), f"{_DECODE}:read_png", "8 and 16 bits", "ISO/IEC 15948", (PNG_MAGIC,)),
    Format(
        "JPEG",
        "image",
        (".jpg", ".jpeg", ".jfif", ".jpe"),
        f"{_DECODE}:read_pillow",
        "8 bits",
        "ISO/IEC 10918",
        (b"\xff\xd8\xff",),
    ),
    Format(
        "JPEG 2000",
        "image",
        (".jp2", ".j2k", ".jpx"),
        f"{_DECODE}:read_jpeg2000",
        "8 and 16 bits",
        "ISO/IEC 15444",
        (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    ),
    Format("GIF", "image", (".gif",), f"{_DECODE}:read_pillow", "one frame", "GIF89a", (b"GIF87a", b"GIF89a")),
    Format(
        "PNM",
        "image",
        (".pgm", ".ppm", ".pbm", ".pnm"),
        f"{_DECODE}:read_pnm",
        "grey of 8 and 16 bits, colour of 8 bits",
        "netpbm.sourceforge.net",
        (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    ),
    Format(
        "TIFF", "image", (".tif", ".tiff"), f"{_DECODE}:read_tiff", "one image", "TIFF 6.0", TIFF_MAGIC, shared=True
    ),
    Format("BMP", "image", (".bmp",), f"{_DECODE}:read_pillow", "Windows bitmap", "", (b"BM",)),
    Format("WebP", "image", (".webp",), f"{_DECODE}:read_pillow", "8 bits", "RFC 9649", (b"RIFF",)),
    # --- volumes
    Format("NIfTI", "volume", (".nii", ".nii.gz"), f"{_VOLUMES}.nifti:read_nifti", "one volume", "NIfTI-1, NIfTI-2"),
    Format(
        "NRRD",
        "volume",
        (".nrrd", ".nhdr"),
        f"{_VOLUMES}.nrrd_metaimage:read_nrrd",
        "header and data in one file or two",
        "teem.sourceforge.net/nrrd/format.html",
        (b"NRRD",),
    ),
    Format(
        "MetaImage",
        "volume",
        (".mha", ".mhd"),
        f"{_VOLUMES}.nrrd_metaimage:read_meta",
        "header and data in one file or two",
        "ITK MetaIO",
    ),
    Format("NumPy volume", "volume", (".npy",), f"{_VOLUMES}.volume:read_npy", "[T Y X] or [C T Y X]"),
    Format(
        "TIFF stack",
        "volume",
        (".tif", ".tiff"),
        f"{_VOLUMES}.tiff_stack:read_stack",
        "slices, with OME or ImageJ sizes",
        "TIFF 6.0, OME-TIFF",
        TIFF_MAGIC,
        shared=True,
    ),
    Format(
        "DICOM",
        "volume",
        (".dcm", ".dicom", ".ima"),
        f"{_VOLUMES}.dicom:read_dicom",
        "a series of slices, or one multi-frame file",
        "DICOM PS3.3 C.7.6.2",
        shared=True,
    ),
    # --- slides
    Format(
        "scanner slide",
        "slide",
        (".svs", ".ndpi", ".scn", ".bif", ".svslide", ".czi"),
        _OPENSLIDE,
        "Aperio, Hamamatsu, Leica, Ventana, Sakura, Zeiss",
        "openslide.org/formats",
        extra="slides",
    ),
    Format(
        "MIRAX",
        "slide",
        (".mrxs",),
        f"{_SLIDES}.multi_file:open_mirax",
        "a file and a folder of the same name",
        "openslide.org/formats/mirax",
        extra="slides",
        parts=f"{_SLIDES}.multi_file:mirax_parts",
    ),
    Format(
        "Hamamatsu VMS",
        "slide",
        (".vms", ".vmu"),
        _OPENSLIDE,
        "a text that names its pictures",
        "openslide.org/formats/hamamatsu",
        extra="slides",
        parts=f"{_SLIDES}.multi_file:hamamatsu_parts",
    ),
    Format(
        "tiled TIFF",
        "slide",
        (".tif", ".tiff", ".btf"),
        _OPENSLIDE,
        "pyramid, OME-TIFF, generic",
        "TIFF 6.0, OME-TIFF",
        TIFF_MAGIC,
        shared=True,
    ),
    Format(
        "DICOM slide",
        "slide",
        (".dcm",),
        _OPENSLIDE,
        "VL whole slide microscopy",
        "DICOM PS3.3 A.32.8",
        extra="slides",
        shared=True,
    ),
    # --- many images in one file, tables, features
    Format(
        "archive",
        "archive",
        (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2"),
        f"{_SOURCES}.archive:ArchiveSource",
        "read in place",
    ),
    Format(
        "NumPy arrays",
        "array",
        (".npz", ".npy"),
        f"{_SOURCES}.arrays:ArraySource",
        "MedMNIST layout, or one stack",
        "numpy.lib.format",
    ),
    Format("CSV", "table", (".csv",), f"{_SOURCES}.tables:read_csv", "comma, semicolon or tab", "RFC 4180"),
    Format(
        "Parquet",
        "table",
        (".parquet",),
        f"{_SOURCES}.tables:read_parquet",
        "columns as in CSV",
        "parquet.apache.org",
        (b"PAR1",),
    ),
    Format(
        "HDF5 features",
        "features",
        (".h5", ".hdf5"),
        "saccade.data.slide_features:load_h5",
        "vectors of tiles, as TRIDENT, CLAM and saccade embed write them",
        "HDF5",
        (b"\x89HDF\r\n\x1a\n",),
        extra="slides",
    ),
)


@functools.cache
def formats() -> tuple[Format, ...]:
    """The built-in formats, then those of installed plug-ins, sorted by the name of their entry point.

    Raises UsageError for a plug-in that cannot be loaded or claims a suffix of another format.
    """
    cards = list(BUILT_IN)
    for card in installed_cards(GROUP, Format):
        for other in cards:
            taken = set(card.suffixes) & set(other.suffixes)
            if taken:
                raise UsageError(
                    f"the file format {card.name} of a plug-in claims suffixes of {other.name}",
                    got=", ".join(sorted(taken)),
                    hint="update or uninstall the package that brings it",
                )
        cards.append(card)
    return tuple(cards)


@functools.cache
def suffixes(*kinds: Kind, shared: bool = True) -> tuple[str, ...]:
    """The suffixes of some kinds of file, in the order of the table.

    Parameters
    ----------
    *kinds : str
        Kinds of format, see ``Format``.
    shared : bool
        Whether to include suffixes that do not identify the kind on their own.

    Examples
    --------
    >>> suffixes("table")[:2]
    ('.csv', '.parquet')
    >>> ".tif" in suffixes("volume", shared=False)
    False
    """
    chosen = (card for card in formats() if card.kind in kinds and (shared or not card.shared))
    return tuple(dict.fromkeys(suffix for card in chosen for suffix in card.suffixes))


def has_suffix(name: str, *kinds: Kind, shared: bool = True) -> bool:
    """Whether a file name ends like one of these kinds; ``shared`` as in ``suffixes``.

    Examples
    --------
    >>> has_suffix("CASE_7.NII.GZ", "volume"), has_suffix("CASE_7.nii.gz", "archive")
    (True, False)
    """
    return name.lower().endswith(suffixes(*kinds, shared=shared))


def by_name(name: str, kind: Kind) -> Format | None:
    """The format of this kind whose suffix matches best; None where none does.

    Examples
    --------
    >>> by_name("liver.nhdr", "volume").name
    'NRRD'
    """
    lower = name.lower()
    matching = [
        (len(suffix), card)
        for card in formats()
        if card.kind == kind
        for suffix in card.suffixes
        if lower.endswith(suffix)
    ]
    return max(matching, key=lambda pair: pair[0])[1] if matching else None


def by_content(data: bytes, kind: Kind) -> Format | None:
    """The format of this kind whose magic bytes the data begin with; None where none does.

    Examples
    --------
    >>> by_content(b"MM\\0*...", "image").name
    'TIFF'
    """
    return next((card for card in formats() if card.kind == kind and card.magic and data.startswith(card.magic)), None)


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin like a TIFF or BigTIFF file."""
    return data.startswith(TIFF_MAGIC)
