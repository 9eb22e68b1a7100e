"""Open and write feature tables: a Parquet file, or ``DATABASE/NAME.lance`` for many rows."""

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


def open_store(location: str | Path) -> Store:
    """The table at ``location``. Raises DataError when it is missing."""
    if is_lance(location):
        return LanceStore(location)
    if not Path(location).is_file():
        raise DataError("feature table not found", got=location, hint=f"saccade embed MODEL DATA --out {location}")
    return MemoryStore(location, load_table(Path(location)))


def written(location: str | Path) -> str:
    """A version stamp of the table at ``location``; empty where it is missing, and for object stores."""
    # Rewriting a LanceDB table adds a version; its folder keeps its modification time.
    file = Path(location) / "_versions" if is_lance(location) else Path(location)
    try:
        status = file.stat()
        return f"{status.st_mtime_ns}-{len(list(file.iterdir())) if file.is_dir() else status.st_size}"
    except OSError:
        return ""


def write(location: str | Path, table: FeatureTable) -> None:
    """Write the table in the format that the name implies. Raises StorageError."""
    if is_lance(location):
        save_lance(location, table)
    else:
        save_table(Path(location), table)


def check_writable(location: str | Path) -> None:
    """Raise StorageError where no table can be written; an object store is not checked."""
    if "://" not in str(location):
        files.check_writable(Path(location).parent if is_lance(location) else location)


def read_metadata(location: str | Path) -> tuple[dict[str, Any], Columns] | None:
    """Metadata (``model``, ``about``) and standard columns of the table at ``location``, without its vectors; None
    where no table can be read."""
    try:
        if is_lance(location):
            store = LanceStore(location)
            return {"model": store.model, "about": store.about}, store.columns_of(COLUMNS)
        arrow = pq.read_table(location, columns=list(COLUMNS))
        metadata = json.loads((arrow.schema.metadata or {})[b"saccade"])
        return metadata, {name: arrow[name].to_pylist() for name in COLUMNS}
    except (DataError, OSError, KeyError, ValueError, pa.ArrowException):
        return None


def approximates(store: Store, requested: bool | None) -> bool:
    """Whether a search uses the index: as requested; by default above EXACT_ROWS, where there is one.

    Raises DataError when an approximate search is requested for a table without an index.
    """
    if requested and not store.indexed:
        raise DataError(
            f"{store.place} has no index: only exact search is possible",
            got=f"{store.rows:,} rows",
            hint="leave out --approximate; tables in LanceDB of more than 10,000 rows have one",
        )
    return store.indexed and store.rows > EXACT_ROWS if requested is None else requested
