"""What all sources share: records from names and from tables, and views over a source."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from saccade.base.contracts import Record, Sample, Source
from saccade.data.formats import has_suffix, suffixes
from saccade.data.sources.tables import MANIFESTS, PATHS, Locate, Table, column_values, finder, is_missing, no_paths
from saccade.data.sources.volume_files import Contents
from saccade.errors import DataError, unknown

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "imagestr": "train",  # the folders of the Medical Segmentation Decathlon
    "imagests": "test",
}
FEW = 5  # volumes; folders with fewer on average are patients


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sorts ``img2`` before ``img10``; the name itself settles ties such as ``1`` and ``01``."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if odd % 2 else part for odd, part in enumerate(parts)], name


def records_from_names(names: Iterable[str]) -> list[Record]:
    """Records by the folders of the files: ``[SPLIT/][CLASS/]file``.

    Folders common to all files are ignored; folders below CLASS are part of the name.

    Parameters
    ----------
    names : iterable of str
        Relative names with ``/``.

    Returns
    -------
    list of Record
        In natural order (``img2`` before ``img10``).

    Examples
    --------
    >>> [(r.id, r.label, r.split) for r in records_from_names(["test/cat/1.png", "train/dog/2.png"])]
    [('test/cat/1.png', 'cat', 'test'), ('train/dog/2.png', 'dog', 'train')]
    """
    names = sorted(names, key=natural_key)
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    skip = 0
    while parents and all(len(p) > skip and p[skip] == parents[0][skip] for p in parents):
        if parents[0][skip].lower() in SPLITS:
            break
        skip += 1
    records = []
    for name, parent in zip(names, parents):
        rest = list(parent[skip:])
        split = SPLITS.get(rest[0].lower()) if rest else None
        if split is not None:
            rest = rest[1:]
        records.append(Record(id=name, label=rest[0] if rest else None, split=split))
    if len({record.label for record in records}) == 1:  # one folder in each split is not a class
        records = [dataclasses.replace(record, label=None) for record in records]
    return records


def records_from_rows(
    table: Table, find: Locate, *, label: str | None, group: str | None, keep_na: bool = False
) -> list[Record]:
    """Records of a manifest, sorted by name; ``keep_na``: classes and groups may be called n/a, NA or nan.

    Raises DataError for rows without a file or files named twice, UsageError for unknown columns.
    """
    key = table.path_column
    columns = set(table.rows[0])
    if key is None:
        raise DataError(
            f"{table.name}: no column with image paths", got=", ".join(columns), expected=" or ".join(PATHS)
        )
    for column in (label, group):
        if column is not None and column.lower() not in columns:
            raise unknown(f"column of {table.name}", column, columns)
    label_key = label.lower() if label else next((c for c in ("label", "class") if c in columns), None)
    group_key = group.lower() if group else ("group" if "group" in columns else None)
    special = {key, label_key, group_key, "split"}
    labels, groups = (column_values(table.rows, column, keep_na) for column in (label_key, group_key))
    records, missing = [], []
    for row, row_label, row_group in zip(table.rows, labels, groups):
        name = find(row[key])
        if name is None:
            missing.append(row[key] or "(empty)")
            continue
        split = None if is_missing(row.get("split", "")) else row["split"]
        records.append(
            Record(
                id=name,
                label=row_label,
                group=row_group,
                split=SPLITS.get(split.lower(), split) if split else None,
                extra={k: v for k, v in row.items() if k not in special},
            )
        )
    _check_rows(records, missing, table)
    return sorted(records, key=lambda record: natural_key(record.id))


def _check_rows(records: Sequence[Record], missing: Sequence[str], table: Table) -> None:
    if missing:
        raise DataError(
            f"{table.name}: {len(missing):,} of {len(table.rows):,} rows name a missing file",
            got=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            expected="paths relative to the table",
        )
    twice = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if twice:
        raise DataError(
            f"{table.name}: {len(twice):,} files are listed in more than one row",
            got=", ".join(twice[:5]),
            expected="one row per image",
            hint="a table of something else, of boxes for example, needs a name other than " + ", ".join(MANIFESTS),
        )


@dataclass(frozen=True)
class Chosen:
    """The records of a source; how many images its table leaves out; why a table that was found is left aside."""

    records: list[Record]
    unlisted: int = 0
    aside: str = ""


def choose_records(
    contents: Contents,
    table: Table | None,
    *,
    explicit: bool,
    locate: Locate,
    label: str | None,
    group: str | None,
    keep_na: bool = False,
) -> Chosen:
    """Records from a fitting manifest, else from the folders.

    contents  the files of the source, sorted out
    explicit  the user named the manifest: whatever does not fit is then an error. One that was merely found is
              left aside, and the reason kept, where it names none of the files
    locate    finds files that ``contents`` does not list
    """
    names, source, aside = contents.names, contents.source, ""
    if table is not None:
        find = finder(table, names, locate)
        aside = "" if explicit or label or group else _misfit(table, find)
        if not aside:
            records = records_from_rows(table, find, label=label, group=group, keep_na=keep_na)
            return Chosen(records, len(set(names) - {record.id for record in records}))
    if not names:
        raise _no_images(contents.files, source)
    if label or group:
        raise DataError(
            f"{source} has no table of columns",
            got=f"--label or --group {label or group}",
            hint="add a labels.csv with the columns path,label,split,group, or name one with --labels",
        )
    return Chosen(_with_patients(records_from_names(names), contents), aside=aside)


def _with_patients(records: list[Record], contents: Contents) -> list[Record]:
    """Volumes often lie in a folder a patient: folders with few volumes each are groups, not classes.

    The patients of DICOM files are known, and go before.
    """
    if not records or not all(contents.is_volume(record.id) for record in records):
        return records
    folders = {record.label for record in records if record.label is not None}
    patients = len(folders) * FEW > len(records)
    return [
        dataclasses.replace(
            record,
            label=None if patients else record.label,
            group=contents.group(record.id) or (record.label if patients else None),
        )
        for record in records
    ]


def _misfit(table: Table, find: Locate) -> str:
    """Why a table that was not given by the user is ignored; "" where it fits the images."""
    key = table.path_column
    if key is None:
        return no_paths(table)
    if any(find(row[key]) for row in table.rows):
        return ""
    return f"{table.name} is ignored: no file matches its column {key}, for example {table.rows[0][key]!r}"


def _no_images(files: Sequence[str], source: str) -> DataError:
    files = sorted(files, key=natural_key)  # a folder is walked in the order of the disk
    slides = sum(has_suffix(name, "slide", shared=False) for name in files)
    return DataError(
        f"{source}: no images found",
        got=f"{len(files):,} files" + (f", among them {slides:,} whole slide files" if slides else "") + _some(files),
        expected="files ending in " + ", ".join((*suffixes("image"), *suffixes("volume", "slide", shared=False))),
        hint="slides are read from a folder, or as a table lists them: take them out of the archive"
        if slides
        else "an archive, .npz or manifest is opened by its own path; see docs/guides/data.md",
    )


def _some(files: Sequence[str]) -> str:
    return f" ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})" if files else ""


# --- views over a source --------------------------------------------------------------------------


class TileRecords(Sequence[Record]):
    """Records of tiles, made when they are asked for: a million of them would be half a gigabyte."""

    def __init__(self, slides: Sequence[Record], slide_of: np.ndarray, coords: np.ndarray):
        self.slides, self.slide_of, self.coords = slides, slide_of, coords

    def __len__(self) -> int:
        return len(self.slide_of)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        x, y = self.coords[index]
        slide = self.slides[self.slide_of[index]]
        return dataclasses.replace(slide, id=f"{slide.id}#{x},{y}", group=slide.group or slide.id)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: np.ndarray) -> TileRecords:
        """Some of the records, in the order given."""
        return TileRecords(self.slides, self.slide_of[indices], self.coords[indices])


def pick(records: Sequence[Record], indices: Iterable[int]) -> Sequence[Record]:
    """The records at ``indices``; of tiles, without making them."""
    if isinstance(records, TileRecords):
        return records.take(np.asarray(list(indices), dtype=np.int64))
    return [records[int(i)] for i in indices]


class Selection:
    """Some images of another source, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, [int(i) for i in indices]
        self.name, self.axes = source.name, source.axes
        self.records = pick(source.records, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.source.read(self.indices[index])

    def content_hash(self, index: int) -> str:
        return self.source.content_hash(self.indices[index])


def select(source: Source, indices: Sequence[int]) -> Selection:
    """The images at ``indices``."""
    return Selection(source, indices)


def with_split(source: Source, names: Iterable[str]) -> Selection:
    """The images of some splits, e.g. ``["train", "val"]``.

    Raises DataError, naming the splits that exist, when there are none.
    """
    splits = {SPLITS.get(name.lower(), name) for name in names}
    chosen = [i for i, record in enumerate(source.records) if record.split in splits]
    if not chosen:
        present = sorted({record.split for record in source.records if record.split is not None})
        raise DataError(
            f"{source.name}: no images of the split {', '.join(sorted(splits))}",
            got="splits " + (", ".join(present) or "none"),
            hint="name one of these, or all",
        )
    return Selection(source, chosen)
