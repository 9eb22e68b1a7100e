"""One door to feature tables: a Parquet file, or ``DATABASE/NAME.lance`` for many rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saccade.base import files
from saccade.errors import DataError
from saccade.features.lancedb_store import LanceStore, is_lance, save_lance
from saccade.features.table import COLUMNS, FeatureTable, MemoryStore, Store, load_table, save_table

Columns = dict[str, list[str | None]]
EXACT_ROWS = 1_000_000  # above, a search is approximate where there is an index


def open_store(place: str | Path) -> Store:
    """The table at ``place``. Raises DataError when there is none."""
    if is_lance(place):
        return LanceStore(place)
    if not Path(place).is_file():
        raise DataError("no such feature table", got=place, hint=f"saccade embed MODEL DATA --out {place}")
    return MemoryStore(place, load_table(Path(place)))


def written(place: str | Path) -> str:
    """Another text after every writing of the table at ``place``; empty where there is none, and for object stores."""
    # A table in LanceDB that is written again is a new version in a folder that stays as it is.
    file = Path(place) / "_versions" if is_lance(place) else Path(place)
    try:
        status = file.stat()
        return f"{status.st_mtime_ns}-{len(list(file.iterdir())) if file.is_dir() else status.st_size}"
    except OSError:
        return ""


def write(place: str | Path, table: FeatureTable) -> None:
    """Write the table where and as the name says. Raises StorageError."""
    if is_lance(place):
        save_lance(place, table)
    else:
        save_table(Path(place), table)


def check_writable(place: str | Path) -> None:
    """Raise StorageError where no table can be written; of an object store that is seen when it is written."""
    if "://" not in str(place):
        files.check_writable(Path(place).parent if is_lance(place) else place)


def said_of(place: str | Path) -> tuple[dict[str, Any], Columns] | None:
    """What the table at ``place`` says of itself (``model`` and ``about``) and of its rows (the columns that all
    tables have), without its vectors; None where there is no table that can be read."""
    try:
        if is_lance(place):
            store = LanceStore(place)
            return {"model": store.model, "about": store.about}, store.columns_of(COLUMNS)
        arrow = pq.read_table(place, columns=list(COLUMNS))
        said = json.loads((arrow.schema.metadata or {})[b"saccade"])
        return said, {name: arrow[name].to_pylist() for name in COLUMNS}
    except (DataError, OSError, KeyError, ValueError, pa.ArrowException):
        return None


def approximates(store: Store, wish: bool | None) -> bool:
    """Whether a search uses the index: as wished; else only above EXACT_ROWS, where there is one.

    Raises DataError when an approximate answer is wished of a table without an index.
    """
    if wish and not store.indexed:
        raise DataError(
            f"{store.place} has no index, so its answers are exact",
            got=f"{store.rows:,} rows",
            hint="leave out --approximate; tables in LanceDB of more than 10,000 rows have one",
        )
    return store.indexed and store.rows > EXACT_ROWS if wish is None else wish
