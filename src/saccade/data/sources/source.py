"""What all sources share: names to records, manifests, and views over a source."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow
import pyarrow.parquet

from saccade.base.contracts import Record, Sample, Source
from saccade.data.formats import by_name, has_suffix, suffixes
from saccade.data.sources.names import normal_name
from saccade.data.sources.volume_files import Contents
from saccade.errors import DataError, first_line, unknown

MANIFESTS = ("manifest.csv", "manifest.parquet", "labels.csv")
PATHS = ("path", "file", "image", "filename", "file_name")  # columns that say where an image is; the first one counts
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
MISSING = ("", "n/a", "na", "nan", "<na>")
WHOLE_FLOAT = re.compile(r"-?[0-9]+\.0+")
Locate = Callable[[str], str | None]


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


# --- manifests ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A manifest.

    name   for messages
    rows   column names in lower case, everything as text
    base   the folder its paths start from, relative to the root of the source, with ``/``; "" is the root
    """

    name: str
    rows: list[dict[str, str]]
    base: str = ""

    @property
    def path_column(self) -> str | None:
        return next((column for column in PATHS if column in self.rows[0]), None)

    @property
    def patient_column(self) -> str | None:
        """The column that groups slides by default: patient, where there is no column group."""
        return "patient" if "patient" in self.rows[0] and "group" not in self.rows[0] else None


def read_table(path: Path) -> Table:
    """A table on disk. Raises DataError when it is absent or cannot be read."""
    try:
        return Table(str(path), read_rows(path.read_bytes(), str(path)))
    except OSError as error:
        raise DataError("table cannot be read", got=f"{path} ({error.strerror})") from error


def table_in(folder: Path) -> Path | None:
    """The table of a folder under one of the names MANIFESTS; None where there is none."""
    return next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)


def read_rows(data: bytes, name: str) -> list[dict[str, str]]:
    """Rows of a table, CSV where the name says nothing else; column names in lower case, everything as text."""
    card = by_name(name, "table")
    try:
        rows: list[dict[str, str]] = (card.load() if card else read_csv)(data, name)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: the text of the table is not in UTF-8",
            got=first_line(error),
            hint='save it as "CSV UTF-8" in the spreadsheet, or convert it: iconv -f WINDOWS-1252 -t UTF-8',
        ) from error
    except (csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{name}: not a readable table", got=first_line(error)) from error
    rows = [row for row in rows if any(row.values())]  # spreadsheets write empty ones below their last
    if not rows:
        raise DataError(f"{name}: the table has no rows")
    return rows


def read_csv(data: bytes, name: str) -> list[dict[str, str]]:
    """Rows of a CSV file separated by comma, semicolon or tab, whichever its first line has most of."""
    text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    return [{(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if k} for row in reader]


def read_parquet(data: bytes, name: str) -> list[dict[str, str]]:
    """Rows of a Parquet file."""
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    # A number that is missing is NaN in some tables and null in others.
    return [{k.lower(): "" if v is None or v != v else str(v) for k, v in r.items()} for r in table.to_pylist()]


def finder(table: Table, names: Iterable[str], locate: Locate) -> Locate:
    """From a path as a row spells it to the name of a file, or None.

    Tried in turn: relative to the table; in ``images/`` beside it; relative to the root; what ``locate`` finds;
    and, for a bare file name only, the one file of that name. A path with folders never finds another folder's
    file: the row would then label the wrong image.
    """
    existing = set(names)
    by_name: dict[str, list[str]] = {}
    for name in existing:
        by_name.setdefault(posixpath.basename(name), []).append(name)

    def find(path: str) -> str | None:
        path = normal_name(path)
        for start in (table.base, posixpath.join(table.base, "images"), ""):
            candidate = posixpath.normpath(posixpath.join(start, path))
            if candidate in existing:
                return candidate
        located = locate(path) if path else None
        same = by_name.get(path, [])
        return located or (same[0] if len(same) == 1 else None)

    return find


def is_missing(text: str) -> bool:
    """Whether a cell of a table stands for no value: empty, n/a (BIDS), NA (R), NaN (pandas) in any case.

    Examples
    --------
    >>> is_missing("n/a"), is_missing("NaN"), is_missing("0")
    (True, True, False)
    """
    return text.strip().lower() in MISSING


def _values(rows: Sequence[dict[str, str]], column: str | None, keep_na: bool) -> list[str | None]:
    """A column as classes or groups: None where a value is missing; 1.0 is 1 where all numbers are whole.

    A column of whole numbers with gaps is stored as floats by pandas and by Parquet.
    """
    if column is None:
        return [None] * len(rows)
    texts = [row[column] for row in rows]
    values = [None if not text or (is_missing(text) and not keep_na) else text for text in texts]
    given = [value for value in values if value is not None]
    if given and all(WHOLE_FLOAT.fullmatch(value) for value in given):
        return [value if value is None else value.partition(".")[0] for value in values]
    return values


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
    labels, groups = (_values(table.rows, column, keep_na) for column in (label_key, group_key))
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


def no_paths(table: Table) -> str:
    """Why a table that was not given by the user is ignored: it has no column with paths."""
    return f"{table.name} is ignored: it has no column {' or '.join(PATHS)}, but {', '.join(table.rows[0])}"


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
