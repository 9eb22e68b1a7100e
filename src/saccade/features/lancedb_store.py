"""The feature table in LanceDB, for many rows: one folder (or object-store URL), read in part, searched there.

``DATABASE/NAME.lance`` is the table NAME of the database DATABASE, a folder or a URL such as ``s3://bucket/db``.
Exact search reads every vector. A table of more than INDEX_ROWS rows also gets an inverted-file index (IVF, Sivic
and Zisserman 2003): vectors are grouped into as many cells as the square root of their number, and a search reads
the nearest few of them. The loss is measured: neighbours of rows of the table, against exact search, for the same k
and filter. The measurement is stored next to the table, in ``NAME-recall.lance``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saccade.base.random import numpy_generator
from saccade.errors import DataError, StorageError, first_line, require
from saccade.features.filters import Condition, check_values, to_sql
from saccade.features.table import FEATURES, FeatureTable, Neighbours, Recall, from_arrow, l2_normalize, to_arrow

SUFFIX = ".lance"
INDEX_ROWS = 10_000  # below, exact search takes a few milliseconds
CHUNK = 65_536
PART = 8_192  # rows of a file in memory at once
SAMPLE = 100  # rows of the table whose neighbours are compared
GOAL_K, GOAL = 10, 0.99  # cells are added until this recall is reached
CELLS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


def is_lance(location: str | Path) -> bool:
    return str(location).rstrip("/").endswith(SUFFIX)


def _connect(location: str | Path, *, write: bool) -> tuple[Any, str]:
    """The database and the name of the table in it."""
    # The library reports the making of a table as a warning; it reads this once, on import.
    os.environ.setdefault("LANCEDB_LOG", "error")
    lancedb = require("lancedb", "search", "a table in LanceDB")
    base, _, name = str(location).rstrip("/").rpartition("/")
    name = name.removesuffix(SUFFIX)
    if not re.fullmatch(r"[\w-]+", name):
        raise DataError("a table name consists of letters, digits, - and _", got=name, expected="DATABASE/NAME.lance")
    if not write and "://" not in base and not Path(location).exists():  # connecting would make the folder
        raise DataError(
            "feature table not found", got=location, hint="saccade embed MODEL DATA --out DATABASE/NAME.lance"
        )
    return lancedb.connect(base or "."), name


def save_lance(location: str | Path, table: FeatureTable) -> None:
    """Write the table, as a new version of an existing one; index it when it is large.

    Raises StorageError on a write error; the previous version is kept.
    """
    arrow = to_arrow(table)
    _write(location, arrow.schema, arrow.to_batches(CHUNK))
    complete(location)


def save_lance_from(location: str | Path, parquet: Path) -> None:
    """Copy the table of a Parquet file by ``table.TableWriter`` in batches, never with all rows in memory.

    The new version is visible after the last batch. Raises StorageError.
    """
    with pq.ParquetFile(parquet) as file:
        # Row group by row group (a slide each): iter_batches would hold all that it has read in memory.
        groups = (file.read_row_group(number) for number in range(file.num_row_groups))
        _write(location, file.schema_arrow, (batch for group in groups for batch in group.to_batches(PART)))
    complete(location)


def _write(location: str | Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    stored = _stored_names(schema.names)
    metadata = {"saccade": schema.metadata[b"saccade"], "columns": json.dumps(stored)}
    renamed = pa.schema([field.with_name(stored[field.name]) for field in schema], metadata)
    parts = (pa.RecordBatch.from_arrays(batch.columns, schema=renamed) for batch in batches)
    try:
        database, name = _connect(location, write=True)
        if f"{name}-recall" in database.list_tables().tables:  # first: it describes the version that is replaced
            database.drop_table(f"{name}-recall")
        database.create_table(name, pa.RecordBatchReader.from_batches(renamed, parts), mode="overwrite")
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"cannot write the feature table {location}", got=first_line(error)) from error


def _stored_names(names: Sequence[str]) -> dict[str, str]:
    """Column names for Lance: characters other than letters, digits and _ become _; duplicates get more of them."""
    stored: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name)
        while plain in stored.values():
            plain += "_"
        stored[name] = plain
    return stored


class LanceStore:
    """An existing table in LanceDB; satisfies table.Store."""

    def __init__(self, location: str | Path):
        self.place = str(location)
        try:
            self._database, self._name = _connect(location, write=False)
            self._table = self._database.open_table(self._name)
            metadata = self._table.schema.metadata or {}
            about = json.loads(metadata[b"saccade"])
            self._stored: dict[str, str] = json.loads(metadata[b"columns"])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{location} is not a feature table",
                got=first_line(error),
                hint="saccade embed MODEL DATA --out DATABASE/NAME.lance",
            ) from error
        self.model, self.about = str(about["model"]), dict(about["about"])
        self.rows = int(self._table.count_rows())
        self.width = int(self._table.schema.field(FEATURES).type.list_size)
        self.columns = tuple(name for name in self._stored if name != FEATURES)
        self.indexed = bool(self._table.list_indices())
        self._values: dict[str, list[str]] = {}
        self._known = self._read_recalls()

    def load(self, rows: Sequence[int] | None = None) -> FeatureTable:
        """The table in memory, or the given rows in ascending order."""
        back = {stored: name for name, stored in self._stored.items()}
        query = None if rows is None else self._table.take_offsets(sorted(int(row) for row in rows))
        arrow = self._table.to_arrow() if query is None else query.to_arrow()
        arrow = arrow.select(list(back)).rename_columns(list(back.values()))
        return from_arrow(arrow.replace_schema_metadata(self._table.schema.metadata))

    def values(self, column: str) -> list[str]:
        """Distinct values of the column, sorted; "" for missing ones."""
        if column not in self._values:
            stored = self._stored[column]
            batches = self._table.search().select([stored]).to_arrow()[stored]
            self._values[column] = sorted({value or "" for value in batches.unique().to_pylist()})
        return self._values[column]

    def columns_of(self, names: Sequence[str]) -> dict[str, list[str | None]]:
        """Some columns of all rows, in order. Raises KeyError for a missing one."""
        arrow = self._table.search().select([self._stored[name] for name in names]).to_arrow()
        return {name: arrow[self._stored[name]].to_pylist() for name in names}

    def nearest_rows(
        self, query: np.ndarray, k: int, conditions: Sequence[Condition] = (), *, approximate: bool = False
    ) -> Neighbours:
        """The k rows most similar to ``query`` [D]; an approximate result has its recall. See table.Store."""
        sql = self._sql(conditions)
        names = [self._stored[name] for name in self.columns]
        recall = self._recall(k, sql) if approximate else None
        rows = self._found(query[None], k, sql, names, cells=recall.cells if recall else None)
        hits = [{name: row[self._stored[name]] for name in self.columns} for row in rows.to_pylist()]
        return Neighbours(hits, 1 - np.asarray(rows["_distance"], dtype=np.float32), recall)

    def _sql(self, conditions: Sequence[Condition]) -> str:
        sql = to_sql(conditions, {name: f"`{self._stored[name]}`" for name in self.columns})
        for condition in conditions:
            check_values(condition, self.values(condition.column))
        return sql

    def _found(self, queries: np.ndarray, k: int, sql: str, names: list[str], *, cells: int | None) -> pa.Table:
        """Rows and distances, nearest first, query by query; ``cells`` None reads every vector."""
        search = self._table.search(l2_normalize(queries)).distance_type("cosine").limit(k).with_row_id(True)
        search = search.bypass_vector_index() if cells is None else search.nprobes(cells)
        return (search.where(sql) if sql else search).select([*names, "_distance"]).to_arrow()

    # --- recall -----------------------------------------------------------------------------------

    def _read_recalls(self) -> list[Recall]:
        if f"{self._name}-recall" not in self._database.list_tables().tables:
            return []
        return [Recall(**row) for row in self._database.open_table(f"{self._name}-recall").to_arrow().to_pylist()]

    def _recall(self, k: int, sql: str) -> Recall:
        """The recall of approximate search for this k and filter: stored, or measured now and stored."""
        for recall in self._known:
            if (recall.k, recall.filter) == (k, sql):
                return recall
        queries, row_ids = self.sample()
        return self.choose_cells(queries, row_ids, k, sql, self._lists(queries, row_ids, k, sql, None))

    def sample(self) -> tuple[np.ndarray, list[int]]:
        """Vectors [S D] and row ids of up to SAMPLE rows, drawn evenly with a fixed seed."""
        chosen = np.sort(numpy_generator(0, "recall").permutation(self.rows)[:SAMPLE])
        table = self._table.take_offsets(chosen.tolist()).select([FEATURES]).with_row_id().to_arrow()
        flat = np.asarray(table[FEATURES].combine_chunks().flatten(), dtype=np.float32)
        return flat.reshape(len(table), self.width), table["_rowid"].to_pylist()

    def choose_cells(self, queries: np.ndarray, row_ids: list[int], k: int, sql: str, exact: list[set[int]]) -> Recall:
        """Read more cells until GOAL is reached; the recall is stored, on disk too unless that is read-only.

        A filter that excludes the cells around a query needs more of them.
        """
        for cells in CELLS:
            recall = self._measured(queries, row_ids, k, sql, exact, cells)
            if recall.mean >= GOAL or cells >= _cells(self.rows):
                break
        self._known.append(recall)
        arrow = pa.Table.from_pylist([vars(recall)], schema=RECALLS)
        try:
            name = f"{self._name}-recall"
            if len(self._known) == 1:
                self._database.create_table(name, arrow, mode="overwrite")
            else:
                self._database.open_table(name).add(arrow)
        except (OSError, ValueError, RuntimeError):
            pass
        return recall

    def _measured(
        self, queries: np.ndarray, row_ids: list[int], k: int, sql: str, exact: list[set[int]], cells: int
    ) -> Recall:
        """Recall of the exact neighbours of sampled rows, the row itself excluded."""
        approximate = self._lists(queries, row_ids, k, sql, cells)
        recalls = np.array([len(a & b) / len(b) for a, b in zip(approximate, exact) if b] or [1.0])
        error, mean = float(1.96 * recalls.std() / math.sqrt(len(recalls))), float(recalls.mean())
        return Recall(k, sql, cells, mean, max(0.0, mean - error), min(1.0, mean + error), len(recalls))

    def _lists(self, queries: np.ndarray, row_ids: list[int], k: int, sql: str, cells: int | None) -> list[set[int]]:
        rows = self._found(queries, k + 1, sql, [], cells=cells)
        lists: list[list[int]] = [[] for _ in queries]
        for query, row in zip(rows["query_index"].to_pylist(), rows["_rowid"].to_pylist()):
            if row != row_ids[query]:
                lists[query].append(row)
        return [set(rows[:k]) for rows in lists]


RECALLS = pa.schema(
    [
        ("k", pa.int64()),
        ("filter", pa.string()),
        ("cells", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("queries", pa.int64()),
    ]
)


def _cells(rows: int) -> int:
    return round(math.sqrt(rows))


def complete(location: str | Path) -> None:
    """Index a large table without an index: it is new, or indexing was interrupted.

    Recall is measured against exact search by the row ids of the table, which are not row numbers after a table was
    replaced, nor beyond the first million rows.
    """
    store = LanceStore(location)
    if store.rows <= INDEX_ROWS or store.indexed:
        return
    from lancedb.index import IvfFlat

    store._table.create_index(FEATURES, config=IvfFlat(distance_type="cosine", num_partitions=_cells(store.rows)))
    LanceStore(location)._recall(GOAL_K, "")
