"""The feature table: one vector per image with its labels, in Parquet; exact search.

Large tables may be stored in LanceDB instead, see lancedb_store.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from saccade.base import frames, parquet_seal
from saccade.base.contracts import Record
from saccade.base.files import cannot_write, discard, make_folder, replace_file, temporary_name
from saccade.base.machine import usable_cores
from saccade.errors import DamagedFile, DataError, first_line
from saccade.features.filters import Condition, mask

ROWS, QUERIES = 4096, 512  # of one product: 8 MiB of similarities
GROUP = 32
COLUMNS = ("id", "label", "group", "split", "sha256")
FEATURES = "features"


@dataclass(frozen=True)
class FeatureTable(frames.Tabular):
    """Feature vectors with ids, labels, groups, splits and content hashes.

    Attributes
    ----------
    features : float32 array [N D]
        One vector per row.
    ids, labels, groups, splits, hashes : list
        N entries each; None where missing.
    model : str
        Name of the model.
    about : dict
        ``spec`` (the input), ``weights`` (their hash), ``data`` (location of the images), ``precision``.
    extras : dict
        Further columns of the manifest, as text.
    """

    features: np.ndarray
    ids: list[str]
    labels: list[str | None]
    groups: list[str | None]
    splits: list[str | None]
    hashes: list[str | None]
    model: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, list[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> dict[str, list[str | None]]:
        """All columns but the features, by name."""
        fixed: list[Any] = [self.ids, self.labels, self.groups, self.splits, self.hashes]
        return dict(zip(COLUMNS, fixed)) | self.extras

    def frame_columns(self) -> dict[str, Any]:
        """All columns, and one per feature: ``feature_0``, ``feature_1``, ..."""
        return self.columns | {f"feature_{i}": self.features[:, i] for i in range(self.features.shape[1])}

    def _repr_html_(self) -> str:
        return frames.to_html(f"Features of {self.model}", self.frame_columns())

    def select(self, indices: Iterable[int]) -> FeatureTable:
        """The rows at ``indices``, in that order."""
        chosen = [int(i) for i in indices]
        columns = {name: [values[i] for i in chosen] for name, values in self.columns.items()}
        return table_of(self.features[chosen], columns, self.model, self.about)


def table_of_records(
    records: Sequence[Record], features: np.ndarray, hashes: Sequence[str | None], model: str, about: dict[str, Any]
) -> FeatureTable:
    """A table with one row per record."""
    return FeatureTable(
        features,
        [record.id for record in records],
        [record.label for record in records],
        [record.group for record in records],
        [record.split for record in records],
        list(hashes),
        model,
        about,
    )


def table_of(
    features: np.ndarray, columns: dict[str, list[str | None]], model: str, about: dict[str, Any]
) -> FeatureTable:
    """A table from its columns by name, the five of COLUMNS and any others."""
    extras = {name: values for name, values in columns.items() if name not in COLUMNS}
    ids, labels, groups, splits, hashes = (columns[name] for name in COLUMNS)
    return FeatureTable(features, [str(i) for i in ids], labels, groups, splits, hashes, model, about, extras)


def storable(text: str | None) -> str | None:
    """Escape undecodable bytes of file names, which a table cannot store: ``\\udcff``."""
    return text if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_arrow(table: FeatureTable) -> pa.Table:
    """Text columns and one fixed-size list column ``features``; model and ``about`` are in the metadata."""
    flat = pa.array(np.ascontiguousarray(table.features, dtype=np.float32).reshape(-1))
    data = {name: pa.array(map(storable, values), pa.string()) for name, values in table.columns.items()}
    data[FEATURES] = pa.FixedSizeListArray.from_arrays(flat, table.features.shape[1])
    about = {"model": table.model, "about": table.about, "sealed": True}
    return pa.table(data).replace_schema_metadata({"saccade": json.dumps(about)})


def from_arrow(arrow: pa.Table) -> FeatureTable:
    """The inverse of to_arrow. Raises KeyError for other tables."""
    about = json.loads((arrow.schema.metadata or {})[b"saccade"])
    lists = arrow[FEATURES].combine_chunks()
    width = lists.type.list_size
    features = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(arrow), width)
    columns = {name: arrow[name].to_pylist() for name in arrow.column_names if name != FEATURES}
    return table_of(features, columns, about["model"], about["about"])


def save_table(path: Path, table: FeatureTable) -> None:
    """Write Parquet atomically. Raises StorageError."""
    with TableWriter(path) as writer:
        writer.add(table)


class TableWriter:
    """Writes a table part by part, under a temporary name until it is complete; for tables larger than memory."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, temporary_name(path)
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> TableWriter:
        make_folder(self.path.parent)
        return self

    def add(self, part: FeatureTable) -> None:
        """All parts have the same columns, width, model and ``about``. Raises StorageError."""
        arrow = to_arrow(part)
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.temporary, arrow.schema)
            self._writer.write_table(arrow)
        except (OSError, UnicodeEncodeError) as error:
            raise cannot_write(self.path, error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.add_key_value_metadata({parquet_seal.KEY: parquet_seal.EMPTY})
                self._writer.close()
                parquet_seal.write(self.temporary)
            if kind is None and self._writer is not None:
                replace_file(self.temporary, self.path)
        except (OSError, UnicodeEncodeError) as error:
            if kind is None:  # otherwise the first error says more
                raise cannot_write(self.path, error) from error
        finally:
            discard(self.temporary)


def check_table(path: Path) -> bool:
    """Compare a feature table with the SHA-256 inside it; False where it has none, as in version 0.1.

    Raises
    ------
    DamagedFile
        The file is not as it was written.
    """
    sealed = parquet_seal.check(path)
    if sealed is None:
        about = (pq.read_schema(path).metadata or {}).get(b"saccade", b"{}")
        sealed = False if json.loads(about).get("sealed") else None
    if sealed is False:
        raise DamagedFile(f"{path} is damaged", got="another SHA-256 than it was written with", hint="embed again")
    return sealed is True


def load_table(path: Path) -> FeatureTable:
    """Read a feature table from a Parquet file. Raises DataError for other files and damaged ones."""
    try:
        check_table(path)
        return from_arrow(pq.read_table(path))
    except (OSError, pa.ArrowException, KeyError, AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not a feature table",
            got=first_line(error),
            hint="saccade embed MODEL DATA --out FILE",
        ) from error


# --- searching ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recall:
    """Recall of approximate search, measured on rows of the table (see lancedb_store.py).

    k, filter   of the measured search
    cells       cells of the index that are read
    mean        fraction of the k exact neighbours that were returned; low and high: its 95 % interval
    queries     rows whose neighbours were compared
    """

    k: int
    filter: str
    cells: int
    mean: float
    low: float
    high: float
    queries: int

    def text(self) -> str:
        return (
            f"approximate: recall {self.mean:.1%} of the {self.k} exact neighbours "
            f"({self.low:.1%} to {self.high:.1%}, measured on {self.queries} rows of the table)"
        )


@dataclass(frozen=True)
class Neighbours:
    """Neighbours, nearest first: their columns and cosine similarities [k]; recall None means exact."""

    hits: list[dict[str, str | None]]
    similarities: np.ndarray
    recall: Recall | None = None


class Store(Protocol):
    """A feature table that can be searched, in memory or in a database."""

    place: str
    model: str
    about: dict[str, Any]
    rows: int
    width: int
    columns: tuple[str, ...]
    indexed: bool

    def load(self, rows: Sequence[int] | None = None) -> FeatureTable:
        """The table in memory, or the given rows in ascending order."""
        ...

    def values(self, column: str) -> list[str]:
        """Distinct values of the column, sorted; "" for missing ones."""
        ...

    def nearest_rows(
        self, query: np.ndarray, k: int, conditions: Sequence[Condition] = (), *, approximate: bool = False
    ) -> Neighbours:
        """The k rows most similar to ``query`` [D] among those that fulfil the conditions."""
        ...


class MemoryStore:
    """A table in memory; satisfies Store. Search is exact."""

    indexed = False

    def __init__(self, location: str | Path, table: FeatureTable):
        self.place, self.table = str(location), table
        self.model, self.about = table.model, table.about
        self.rows, self.width = table.features.shape
        self.columns = tuple(table.columns)

    def load(self, rows: Sequence[int] | None = None) -> FeatureTable:
        return self.table if rows is None else self.table.select(sorted(int(row) for row in rows))

    def values(self, column: str) -> list[str]:
        return sorted({value or "" for value in self.table.columns[column]})

    def nearest_rows(
        self, query: np.ndarray, k: int, conditions: Sequence[Condition] = (), *, approximate: bool = False
    ) -> Neighbours:
        features, candidates = self.table.features, None
        if conditions:
            candidates = np.flatnonzero(mask(conditions, self.table.columns, self.rows))
            features = features[candidates]
        if not len(features):
            return Neighbours([], np.zeros(0, np.float32))
        similar, indices = nearest(features, query[None], k)
        rows = indices[0] if candidates is None else candidates[indices[0]]
        columns = self.table.columns
        return Neighbours([{name: columns[name][int(row)] for name in self.columns} for row in rows], similar[0])


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay zero."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact cosine neighbours of ``queries`` [Q D] among ``rows`` [N D], nearest first.

    Returns similarities [Q k] float32 and indices [Q k], k capped by N. The queries are divided between the
    cores; only a few megabytes of similarities exist at a time, so N may be in the millions.
    """
    k = min(k, len(rows))
    queries = l2_normalize(queries)
    parts = np.array_split(queries, max(1, min(usable_cores(), len(queries) // 64)))
    # One thread per product: the products themselves run in parallel.
    with threadpool_limits(1), ThreadPoolExecutor(len(parts)) as pool:
        results = list(pool.map(lambda part: _nearest(rows, part, k), parts))
    return np.concatenate([scores for scores, _ in results]), np.concatenate([indices for _, indices in results])


def _nearest(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(queries), k), -np.inf, np.float32)
    where = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(rows), ROWS):
        block = l2_normalize(rows[start : start + ROWS]).T
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            _keep_best(queries[part] @ block, start, best[part], where[part])
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)


def _keep_best(similar: np.ndarray, start: int, best: np.ndarray, where: np.ndarray) -> None:
    """Merge similarities [q n] of the rows from ``start`` on into the best k of each query, in place.

    Most blocks hold few new neighbours. The maximum of each group of columns is compared with the worst of the best,
    and only groups above it are read.
    """
    (count, width), k = similar.shape, best.shape[1]
    if start == 0:  # no best values yet
        most = min(k, width)
        top = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        best[:, :most], where[:, :most] = np.take_along_axis(similar, top, 1), top
        return
    grouped = width // GROUP * GROUP
    groups = similar[:, :grouped].reshape(count, GROUP, -1)  # of every n / GROUP-th column
    worst = best.min(axis=1, keepdims=True)
    query, group = np.nonzero(groups.max(axis=1) > worst) if grouped else (np.zeros(0, np.int64),) * 2
    values = groups[query, :, group]
    hit, member = np.nonzero(values > worst[query])
    rest_query, rest_column = np.nonzero(similar[:, grouped:] > worst)
    hits = np.concatenate([query[hit], rest_query])
    columns = np.concatenate([member * groups.shape[2] + group[hit], grouped + rest_column])
    if not len(hits):
        return
    order = np.argsort(hits, kind="stable")
    hits, columns = hits[order], columns[order]
    touched, begin, counts = np.unique(hits, return_index=True, return_counts=True)
    rank = np.arange(len(hits)) - np.repeat(begin, counts)
    row = np.repeat(np.arange(len(touched)), counts)
    values = np.full((len(touched), k + counts.max()), -np.inf, np.float32)
    numbers = np.zeros(values.shape, np.int64)
    values[:, :k], numbers[:, :k] = best[touched], where[touched]
    values[row, k + rank], numbers[row, k + rank] = similar[hits, columns], start + columns
    top = np.argpartition(-values, k - 1, axis=1)[:, :k]
    best[touched], where[touched] = np.take_along_axis(values, top, 1), np.take_along_axis(numbers, top, 1)
