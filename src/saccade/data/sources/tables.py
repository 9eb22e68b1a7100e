"""Tables that list images: their rows, the files that these name, and which cells have no value."""

from __future__ import annotations

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow

from saccade.data.formats import by_name
from saccade.data.limits import check_table, damage_named
from saccade.data.parquet import read_bounded
from saccade.data.sources.names import normal_name
from saccade.errors import DataError, first_line

MANIFESTS = ("manifest.csv", "manifest.parquet", "labels.csv")


PATHS = ("path", "file", "image", "filename", "file_name")  # columns that say where an image is; the first one counts


MISSING = ("", "n/a", "na", "nan", "<na>")


WHOLE_FLOAT = re.compile(r"-?[0-9]+\.0+")


Locate = Callable[[str], str | None]


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
        check_table(path.stat().st_size, str(path))
        return Table(str(path), read_rows(path.read_bytes(), str(path)))
    except OSError as error:
        raise DataError("table cannot be read", got=f"{path} ({error.strerror})") from error


def table_in(folder: Path) -> Path | None:
    """The table of a folder under one of the names MANIFESTS; None where there is none."""
    return next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)


def read_rows(data: bytes, name: str) -> list[dict[str, str]]:
    """Rows of a table, CSV where the name says nothing else; column names in lower case, everything as text."""
    card = by_name(name, "table")
    with damage_named(name, "not a readable table"):
        try:
            rows: list[dict[str, str]] = (card.load() if card else read_csv)(data, name)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: the text of the table is not in UTF-8",
                got=first_line(error),
                hint='save it as "CSV UTF-8" in the spreadsheet, or convert it: iconv -f WINDOWS-1252 -t UTF-8',
            ) from error
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
    table = read_bounded(pyarrow.BufferReader(data), len(data), name)
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


def column_values(rows: Sequence[dict[str, str]], column: str | None, keep_na: bool) -> list[str | None]:
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


def no_paths(table: Table) -> str:
    """Why a table that was not given by the user is ignored: it has no column with paths."""
    return f"{table.name} is ignored: it has no column {' or '.join(PATHS)}, but {', '.join(table.rows[0])}"
