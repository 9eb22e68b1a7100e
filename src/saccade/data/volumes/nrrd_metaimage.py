"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd): a text header, then raw or packed numbers.

NRRD: teem.sourceforge.net/nrrd/format.html. MetaImage: ITK's description of its own format. Both name the number
type, the sizes and how the axes lie; the numbers may be in a file beside the header.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saccade.data.limits import MAX_CHANNELS, check_voxels
from saccade.data.volumes.orientation import Volume, check_spacing, to_lps, unplaced
from saccade.data.volumes.safe_decompress import bunzip, fits, gunzip, inflate
from saccade.errors import DamagedFile

Beside = Callable[[str], bytes]
LONGEST_HEADER = 2**20

NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
SPACES = {  # axes of the header's own space -> what turns them into RAS
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}


@dataclass(frozen=True)
class _Layout:
    """What a header says: sizes fastest axis first, ``channel`` the place of the axis without space, if any."""

    dtype: np.dtype
    sizes: tuple[int, ...]
    channel: int | None
    affine: np.ndarray | None
    spacing: tuple[float, ...] | None


# --- NRRD -----------------------------------------------------------------------------------------


def read_nrrd(data: bytes, name: str, beside: Beside) -> Volume:
    """One volume. Raises DamagedFile, naming the file."""
    if data[:4] != b"NRRD":
        raise DamagedFile(f"{name}: not an NRRD file", hint="copy it again")
    head, gap, body = _cut(data, (b"\n\n", b"\r\n\r\n"))
    fields = _fields(head, ":")
    layout = _nrrd_layout(fields, name)
    detached = fields.get("data file") or fields.get("datafile")
    if detached is not None:
        if detached.upper().startswith("LIST") or "%" in detached:
            raise DamagedFile(f"{name}: its data are split over several files", hint="save it as one .nrrd")
        body = beside(_plain_name(detached, name))
    elif not gap:
        raise DamagedFile(f"{name}: the header has no end, or no data follow", hint="copy it again")
    encoding = fields.get("encoding", "").lower()
    for field in ("line skip", "lineskip"):
        if int(fields.get(field, 0)):
            raise DamagedFile(f"{name}: NRRD with a line skip is not read", hint="save it again as .nrrd")
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    needed = _bytes(layout)
    if encoding == "raw":
        body = body[len(body) - needed :] if skip == -1 and len(body) >= needed else body[max(skip, 0) :]
    elif encoding in ("gzip", "gz"):
        body = gunzip(body, needed + skip + _slice_bytes(layout), name)[max(skip, 0) :]
    elif encoding in ("bzip2", "bz2"):
        body = bunzip(body, needed + skip + _slice_bytes(layout), name)[max(skip, 0) :]
    else:
        raise DamagedFile(f"{name}: unknown encoding", got=encoding or "none", expected="raw, gzip or bzip2")
    return _volume(body, layout, name)


def _nrrd_layout(fields: dict[str, str], name: str) -> _Layout:
    kind = fields.get("type", "").lower()
    code = next((code for code, words in NRRD_TYPES.items() if kind in words), None)
    if code is None:
        raise DamagedFile(f"{name}: unsupported voxel type", got=f"type {kind or 'missing'}")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    sizes = _numbers(fields.get("sizes", ""), int, name)
    if len(sizes) != int(fields.get("dimension", len(sizes))):
        raise DamagedFile(f"{name}: its header contradicts itself", got=f"dimension and {len(sizes)} sizes")
    directions = _vectors(fields.get("space directions", ""), name)
    channel = _nrrd_channel(fields, directions, len(sizes), name)
    affine, spacing = None, None
    if directions:
        space = fields.get("space", "").lower()
        vectors = [v for v in directions if v is not None]
        if len(vectors) != 3:
            raise DamagedFile(f"{name}: not a volume", got=f"{len(vectors)} axes in space", expected="three")
        affine = np.eye(4)
        affine[:3, :3] = np.array(vectors).T
        origin = (_vectors(fields.get("space origin", ""), name) or [None])[0]
        affine[:3, 3] = (0, 0, 0) if origin is None else origin
        if space in SPACES:
            affine = np.diag([*SPACES[space], 1.0]) @ affine
        else:  # directions in a space without patient: sizes of voxels, but no orientation
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
            affine, spacing = None, tuple(float(v) for v in lengths)
    elif "spacings" in fields:
        every = _numbers(fields["spacings"], float, name)
        spacing = tuple(v for at, v in enumerate(every) if at != channel)
    return _checked(_Layout(np.dtype(order + code), tuple(sizes), channel, affine, spacing), name)


def _nrrd_channel(fields: dict[str, str], directions: list[np.ndarray | None], axes: int, name: str) -> int | None:
    """Place of the one axis that is not in space."""
    if axes == 3:
        return None
    outside = [at for at, vector in enumerate(directions) if vector is None]
    if not directions:
        kinds = fields.get("kinds", "").lower().split()
        outside = [at for at, kind in enumerate(kinds) if kind not in ("space", "domain")]
    if axes != 4 or len(outside) != 1:
        raise DamagedFile(
            f"{name}: not a volume", got=f"{axes} axes", expected="three axes in space, and at most one for channels"
        )
    return outside[0]


def _vectors(text: str, name: str) -> list[np.ndarray | None]:
    """``(1,0,0) none (0,1,0)`` as arrays and None."""
    vectors: list[np.ndarray | None] = []
    for word in text.replace(", ", ",").split():
        if word.lower() == "none":
            vectors.append(None)
            continue
        vector = _numbers(word.strip("()").replace(",", " "), float, name)
        if len(vector) != 3:
            raise DamagedFile(f"{name}: invalid direction in its header", got=word)
        vectors.append(np.array(vector))
    return vectors


# --- MetaImage ------------------------------------------------------------------------------------


def read_meta(data: bytes, name: str, beside: Beside) -> Volume:
    """One volume. Raises DamagedFile, naming the file."""
    at = data[:LONGEST_HEADER].find(b"ElementDataFile")
    end = data.find(b"\n", at)
    if at < 0 or end < 0:
        raise DamagedFile(f"{name}: not a MetaImage file", got="no ElementDataFile", hint="copy it again")
    fields = _fields(data[:end], "=")
    layout = _meta_layout(fields, name)
    where = fields["elementdatafile"]
    if where.upper() == "LIST" or "%" in where:
        raise DamagedFile(f"{name}: its data are split over several files", hint="save it as one .mha")
    body = data[end + 1 :] if where.upper() == "LOCAL" else beside(_plain_name(where, name))
    needed, skip = _bytes(layout), int(fields.get("headersize", 0))
    if fields.get("compresseddata", "").lower() == "true":
        body = inflate(body, needed + _slice_bytes(layout), name)
    elif skip == -1 and len(body) >= needed:
        body = body[len(body) - needed :]
    else:
        body = body[max(skip, 0) :]
    return _volume(body, layout, name)


def _meta_layout(fields: dict[str, str], name: str) -> _Layout:
    kind = fields.get("elementtype", "").upper()
    if kind not in META_TYPES:
        raise DamagedFile(f"{name}: unsupported voxel type", got=f"ElementType {kind or 'missing'}")
    if fields.get("binarydata", "true").lower() != "true":
        raise DamagedFile(f"{name}: its data are stored as text", hint="save it in binary form")
    big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false")).lower() == "true"
    sizes = _numbers(fields.get("dimsize", ""), int, name)
    if len(sizes) != 3:
        raise DamagedFile(f"{name}: not a volume", got=f"DimSize {fields.get('dimsize', 'missing')}", expected="three")
    channels = int(fields.get("elementnumberofchannels", 1))
    spacing = _numbers(fields.get("elementspacing", fields.get("elementsize", "")), float, name)
    turn = _numbers(fields.get("transformmatrix", fields.get("rotation", fields.get("orientation", ""))), float, name)
    origin = _numbers(fields.get("offset", fields.get("origin", fields.get("position", ""))), float, name)
    affine, sides = None, tuple(spacing) if len(spacing) == 3 else None
    if sides is not None:
        check_spacing(sides[::-1], name)
    if sides is not None and len(turn) == 9:  # one axis of the volume after another, in LPS
        affine = np.eye(4)
        affine[:3, :3] = np.array(turn).reshape(3, 3).T * sides
        affine[:3, 3] = origin if len(origin) == 3 else (0, 0, 0)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    dtype = np.dtype((">" if big else "<") + META_TYPES[kind])
    if channels > 1:
        return _checked(_Layout(dtype, (channels, *sizes), 0, affine, sides), name)
    return _checked(_Layout(dtype, tuple(sizes), None, affine, sides), name)


# --- both -----------------------------------------------------------------------------------------


def _cut(data: bytes, marks: tuple[bytes, ...]) -> tuple[bytes, bytes, bytes]:
    """Header, mark and body at the first mark; no mark: all is header."""
    places = [(at, mark) for mark in marks if (at := data[:LONGEST_HEADER].find(mark)) >= 0]
    if not places:
        return data, b"", b""
    at, mark = min(places)
    return data[:at], mark, data[at + len(mark) :]


def _fields(head: bytes, sign: str) -> dict[str, str]:
    """``name: value`` lines with names in lower case; comments and key/value pairs (``:=``) of NRRD are left out."""
    fields = {}
    for line in head.decode("latin-1").splitlines():
        key, mark, value = line.partition(sign)
        if mark and not line.startswith("#") and not (sign == ":" and value.startswith("=")):
            fields[key.strip().lower()] = value.strip()
    return fields


def _numbers(text: str, kind: Callable[[str], float], name: str) -> list:
    try:
        return [kind(word) for word in text.split()]
    except ValueError:
        raise DamagedFile(f"{name}: invalid number in its header", got=text[:80]) from None


def _plain_name(text: str, name: str) -> str:
    """A file beside the header; one elsewhere is refused."""
    word = text.removeprefix("./")
    if posixpath.basename(word.replace("\\", "/")) != word:
        raise DamagedFile(f"{name}: its data file is outside its folder", got=text, expected="a file beside the header")
    return word


def _bytes(layout: _Layout) -> int:
    return math.prod(layout.sizes) * layout.dtype.itemsize


def _slice_bytes(layout: _Layout) -> int:
    return math.prod(layout.sizes[:-1]) * layout.dtype.itemsize


def _checked(layout: _Layout, name: str) -> _Layout:
    """Before anything is unpacked."""
    check_voxels(layout.sizes, layout.dtype, name)
    return layout


def _volume(body: bytes, layout: _Layout, name: str) -> Volume:
    fits(len(body), _bytes(layout), _slice_bytes(layout), name)
    values = np.frombuffer(body, layout.dtype, math.prod(layout.sizes)).reshape(layout.sizes, order="F")
    if layout.channel is not None:
        values = np.moveaxis(values, layout.channel, 3)
        if values.shape[3] > MAX_CHANNELS:
            raise DamagedFile(f"{name}: a series in time, not a volume", got=f"{values.shape[3]} values a voxel")
    if min(values.shape[:3]) < 1 or values.shape[2] < 2:
        raise DamagedFile(f"{name}: not a volume", got=f"sizes {layout.sizes}", expected="several slices")
    if layout.affine is not None:
        return to_lps(values, layout.affine, name)
    if layout.spacing is not None and len(layout.spacing) == 3:
        check_spacing(layout.spacing[::-1], name)
        x, y, z = layout.spacing
        return unplaced(values.T, (z, y, x))
    return unplaced(values.T)
