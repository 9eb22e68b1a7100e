"""Which files are slides: by the name, by being a tiled pyramid, or because the user cuts them into tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import tifffile

from saccade.base.contracts import Record
from saccade.data.formats import by_name, has_suffix, suffixes
from saccade.data.images.tiff import main_series
from saccade.data.slides.dicom_reader import has_dicom_suffix, is_dicom_slide, may_be_dicom, series_in
from saccade.data.slides.multi_file import parts_of, refuse_part
from saccade.data.slides.slide_pool import SlideEntry
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiff_reader import CUT_OFF, listening
from saccade.data.slides.tiling import Tiling
from saccade.data.sources.folder import files_below
from saccade.data.sources.names import by_normal_name
from saccade.data.sources.source import records_from_names, records_from_rows
from saccade.data.sources.tables import Table, finder, no_paths, read_table, table_in
from saccade.errors import DataError, UsageError

PROBED = 3  # TIFF files of a folder that are opened to see what they are
LARGE_PX = 178_000_000  # larger images are not decoded as a whole


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
        with listening() as messages, tifffile.TiffFile(path) as file:
            series = main_series(file, path.name)
            first = series.pages[0].aspage()
            second = file.pages[1].aspage() if len(file.pages) > 1 else first
            smaller = len(series.levels) > 1 or 0.02 < second.imagewidth / first.imagewidth < 0.9
            smaller = smaller or any(CUT_OFF in line for line in messages)
            return bool(first.is_tiled and (smaller or first.imagewidth * first.imagelength > LARGE_PX))
    except Exception:  # nearly anything is raised on broken bytes; such a file is not a pyramid
        return False


def find_slides(
    path: Path,
    *,
    manifest: Path | None = None,
    label: str | None = None,
    group: str | None = None,
    keep_na: bool = False,
    tiling: Tiling,
) -> SlideTiles | None:
    """The tiles of ``path`` where it is a slide, a folder or a table of slides; None for other data.

    A table has the columns ``path,mpp,label,patient,split``, all but the first optional.
    """
    if path.is_file() and not has_suffix(path.name, "table"):
        return _one(path, tiling) if is_slide(path, asked=tiling.asked) else None
    refuse_part(path)
    root, table = path, read_table(manifest) if manifest else None
    if path.is_file():
        root, table = path.parent, read_table(path)
    explicit = table is not None
    if table is None:
        table_path = table_in(path)
        table = read_table(table_path) if table_path else None
    if table is not None and table.path_column and _lists_slides(table, root, tiling):
        return open_slides(
            root, files_below(root), table, tiling=tiling, label=label, group=group, name=str(path), keep_na=keep_na
        )
    if explicit:
        return None
    files = files_below(root)
    if not _holds_slides(root, files, tiling):
        return None
    tiles = open_slides(root, files, None, tiling=tiling, label=label, group=group, name=str(path))
    tiles.aside = _aside(table) if table is not None else ""
    return tiles


def _aside(table: Table) -> str:
    """Why a table that lies in a folder of slides is not used."""
    key = table.path_column
    if key is None:
        return no_paths(table)
    return f"{table.name} is ignored: no slide matches its column {key}, for example {table.rows[0][key]!r}"


def _lists_slides(table: Table, root: Path, tiling: Tiling) -> bool:
    assert table.path_column
    names = [row[table.path_column] for row in table.rows]
    if any(is_slide_name(name) for name in names) or "mpp" in table.rows[0]:
        return True
    pictures = [name for name in names if _has_tiff_suffix(name)]
    places = [base / name for base in (Path(table.name).parent, root) for name in pictures[:PROBED]]
    return bool(pictures) and (tiling.asked or any(is_pyramid(path) for path in places))


def is_slide(path: Path, *, asked: bool) -> bool:
    """Whether a file is a slide; ``asked``: the user cuts it into tiles, so any TIFF is."""
    name = path.name.lower()
    return is_slide_name(name) or is_pyramid(path) or is_dicom_slide(path) or (asked and _has_tiff_suffix(name))


def holds_slides(folder: Path, *, asked: bool) -> bool:
    """Whether the files of a folder are slides; ``asked`` as in ``is_slide``."""
    return _holds_slides(folder, files_below(folder), Tiling(mpp=1.0) if asked else Tiling())


def _one(path: Path, tiling: Tiling) -> SlideTiles:
    return SlideTiles(str(path), [SlideEntry(path, Record(id=path.name))], tiling)


def _holds_slides(root: Path, names: Sequence[str], tiling: Tiling) -> bool:
    """Whether the files of a folder are slides: a name of a slide among them, or tiled pyramids at its beginning."""
    if any(is_slide_name(name) for name in names):
        return True
    if any(is_dicom_slide(root / name) for name in [n for n in names if may_be_dicom(n)][:PROBED]):
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
    keep_na: bool = False,
) -> SlideTiles:
    """The tiles of the slides in a folder, or of those that a table lists (``path,mpp,label,patient,split``)."""
    files = [name for name in names if (is_slide_name(name) or _has_tiff_suffix(name)) and _seen(name)]
    files += series_in(root, names)
    stored = by_normal_name(files)
    beside: list[str] = []
    if table is not None:
        near = Path(table.name).parent

        def locate(path: str) -> str | None:
            file = near / path
            return Path(os.path.relpath(file, root)).as_posix() if path and file.is_file() else None

        find = finder(table, stored, locate)
        group = group or table.patient_column
        records = records_from_rows(table, find, label=label, group=group, keep_na=keep_na)
    elif label or group:
        raise DataError(f"{name} has no table of columns", got=f"--label or --group {label or group}")
    else:
        records = records_from_names(stored)
        beside = _beside(root, names, files)
    if not records:
        raise DataError(
            f"{name}: no slides found", got=f"{len(names):,} files", expected=", ".join(suffixes("slide", shared=False))
        )
    entries = [SlideEntry(root / stored.get(record.id, record.id), record, _mpp(record, table)) for record in records]
    return SlideTiles(name, entries, tiling, beside=beside)


def _beside(root: Path, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Files of a folder that are neither slides nor parts of one (see ``parts_of``; other files of a DICOM slide)."""
    slide_files = {root / name for name in taken}
    slide_files |= {part for name in taken for part in parts_of(root / name)}
    rest = [name for name in names if root / name not in slide_files and _seen(name) and not has_dicom_suffix(name)]
    return sorted(rest)


def _mpp(record: Record, table: Table | None) -> float | None:
    text = record.extra.get("mpp", "")
    if not text:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        table_name = table.name if table else record.id
        raise UsageError(
            f"{table_name}: the column mpp holds micrometres per pixel", got=f"{text!r} for {record.id}"
        ) from None
