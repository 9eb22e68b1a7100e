"""Which files are slides: by the name, by being a tiled pyramid, or because the user cuts them into tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import tifffile

from saccade.base.contracts import Record
from saccade.data.formats import by_name, has_suffix, suffixes
from saccade.data.slides.dicom_reader import has_dicom_suffix, is_dicom_slide, series_in
from saccade.data.slides.multi_file import parts_of, refuse_part
from saccade.data.slides.slide_pool import Named
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiff_reader import CUT_OFF, listening
from saccade.data.slides.tiling import Tiling
from saccade.data.sources.folder import files_below
from saccade.data.sources.source import (
    Table,
    finder,
    no_paths,
    read_table,
    records_from_names,
    records_from_rows,
    table_in,
)
from saccade.errors import DataError, UsageError

PROBED = 3  # TIFF files of a folder that are opened to see what they are
LARGE_PX = 178_000_000  # more is no image that is decoded whole


def is_slide_name(name: str) -> bool:
    return has_suffix(name, "slide", shared=False)


def _has_tiff_suffix(name: str) -> bool:
    card = by_name(name, "slide")
    return card is not None and card.name == "tiled TIFF"


def is_pyramid(path: Path) -> bool:
    """Whether a TIFF has tiles and either several levels or too many pixels for an image; or was, before it was cut."""
    if not _has_tiff_suffix(path.name):
        return False
    try:
        with listening() as said, tifffile.TiffFile(path) as file:
            first = file.pages.first.aspage()
            second = file.pages[1].aspage() if len(file.pages) > 1 else first
            smaller = len(file.series[0].levels) > 1 or 0.02 < second.imagewidth / first.imagewidth < 0.9
            smaller = smaller or any(CUT_OFF in line for line in said)
            return bool(first.is_tiled and (smaller or first.imagewidth * first.imagelength > LARGE_PX))
    except Exception:  # nearly anything is raised on broken bytes; such a file is no pyramid
        return False


def find_slides(
    place: Path,
    *,
    manifest: Path | None = None,
    label: str | None = None,
    group: str | None = None,
    tiling: Tiling,
) -> SlideTiles | None:
    """The tiles of ``place`` where it is a slide, a folder or a table of slides; None where it is something else.

    A table has the columns ``path,mpp,label,patient,split``, all but the first optional.
    """
    if place.is_file() and not has_suffix(place.name, "table"):
        return _one(place, tiling) if is_slide(place, asked=tiling.asked) else None
    refuse_part(place)
    root, table = place, read_table(manifest) if manifest else None
    if place.is_file():
        root, table = place.parent, read_table(place)
    explicit = table is not None
    if table is None:
        held = table_in(place)
        table = read_table(held) if held else None
    if table is not None and table.path_column and _lists_slides(table, root, tiling):
        return open_slides(root, files_below(root), table, tiling=tiling, label=label, group=group, name=str(place))
    if explicit:
        return None
    files = files_below(root)
    if not _holds_slides(root, files, tiling):
        return None
    found = open_slides(root, files, None, tiling=tiling, label=label, group=group, name=str(place))
    found.aside = _aside(table) if table is not None else ""
    return found


def _aside(table: Table) -> str:
    """Why a table that lies in a folder of slides is not used."""
    key = table.path_column
    if key is None:
        return no_paths(table)
    return f"{table.name} is left aside: its column {key} names no slide, but for example {table.rows[0][key]!r}"


def _lists_slides(table: Table, root: Path, tiling: Tiling) -> bool:
    assert table.path_column
    names = [row[table.path_column] for row in table.rows]
    if any(is_slide_name(name) for name in names) or "mpp" in table.rows[0]:
        return True
    pictures = [name for name in names if _has_tiff_suffix(name)]
    places = [base / name for base in (Path(table.name).parent, root) for name in pictures[:PROBED]]
    return bool(pictures) and (tiling.asked or any(is_pyramid(place) for place in places))


def is_slide(path: Path, *, asked: bool) -> bool:
    """Whether a file is a slide; ``asked``: the user cuts it into tiles, so any TIFF is."""
    name = path.name.lower()
    return is_slide_name(name) or is_pyramid(path) or is_dicom_slide(path) or (asked and _has_tiff_suffix(name))


def holds_slides(folder: Path, *, asked: bool) -> bool:
    """Whether the files of a folder are slides; ``asked`` as in ``is_slide``."""
    return _holds_slides(folder, files_below(folder), Tiling(mpp=1.0) if asked else Tiling())


def _one(path: Path, tiling: Tiling) -> SlideTiles:
    return SlideTiles(str(path), [Named(path, Record(id=path.name))], tiling)


def _holds_slides(root: Path, names: Sequence[str], tiling: Tiling) -> bool:
    """Whether the files of a folder are slides: a name of a slide among them, or tiled pyramids at its beginning."""
    if any(is_slide_name(name) for name in names):
        return True
    if any(is_dicom_slide(root / name) for name in [n for n in names if has_dicom_suffix(n)][:1]):
        return True
    pictures = [name for name in names if _has_tiff_suffix(name) and _seen(name)]
    return bool(pictures) and (tiling.asked or any(is_pyramid(root / name) for name in pictures[:PROBED]))


def _seen(name: str) -> bool:
    return not any(part.startswith(".") for part in PurePosixPath(name).parts)


def open_slides(
    root: Path,
    names: Sequence[str],
    table: Table | None,
    *,
    tiling: Tiling,
    label: str | None,
    group: str | None,
    name: str,
) -> SlideTiles:
    """The tiles of the slides in a folder, or of those that a table lists (``path,mpp,label,patient,split``)."""
    files = [name for name in names if (is_slide_name(name) or _has_tiff_suffix(name)) and _seen(name)]
    files += series_in(root, names)
    beside: list[str] = []
    if table is not None:
        near = Path(table.name).parent

        def locate(path: str) -> str | None:
            place = near / path
            return Path(os.path.relpath(place, root)).as_posix() if path and place.is_file() else None

        find = finder(table, files, locate)
        group = group or table.patient_column
        records = records_from_rows(table, find, label=label, group=group)
    elif label or group:
        raise DataError(f"{name} has no table of columns", got=f"--label or --group {label or group}")
    else:
        records = records_from_names(files)
        beside = _beside(root, names, files)
    if not records:
        raise DataError(
            f"{name}: no slides found", got=f"{len(names):,} files", expected=", ".join(suffixes("slide", shared=False))
        )
    named = [Named(root / record.id, record, _mpp(record, table)) for record in records]
    return SlideTiles(name, named, tiling, beside=beside)


def _beside(root: Path, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Files of a folder that are neither slides nor parts of one (see ``parts_of``; other files of a DICOM slide)."""
    kept = {root / name for name in taken}
    kept |= {part for name in taken for part in parts_of(root / name)}
    rest = [name for name in names if root / name not in kept and _seen(name) and not has_dicom_suffix(name)]
    return sorted(rest)


def _mpp(record: Record, table: Table | None) -> float | None:
    text = record.extra.get("mpp", "")
    if not text:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        named = table.name if table else record.id
        raise UsageError(f"{named}: the column mpp has micrometres a pixel", got=f"{text!r} for {record.id}") from None
