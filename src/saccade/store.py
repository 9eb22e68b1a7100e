"""The feature table: one vector an image with what is known of it, in Parquet; exact search in it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from saccade.errors import DataError, StorageError

ROWS, QUERIES = 4096, 512  # of one product: 8 MiB of similarities
GROUP = 32
COLUMNS = ("id", "label", "group", "split", "sha256")


@dataclass(frozen=True)
class FeatureTable:
    """features [N D] float32; the lists have N entries; ``model`` made the features, ``about`` says how."""

    features: np.ndarray
    ids: list[str]
    labels: list[str | None]
    groups: list[str | None]
    splits: list[str | None]
    hashes: list[str | None]
    model: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Iterable[int]) -> FeatureTable:
        """The rows at ``indices``, in that order."""
        chosen = [int(i) for i in indices]

        def of(values: list[Any]) -> list[Any]:
            return [values[i] for i in chosen]

        return FeatureTable(
            self.features[chosen],
            of(self.ids),
            of(self.labels),
            of(self.groups),
            of(self.splits),
            of(self.hashes),
            self.model,
            self.about,
        )


def save_table(path: Path, table: FeatureTable) -> None:
    """Write Parquet (one fixed-size list column ``features``), under a temporary name first."""
    flat = pa.array(np.ascontiguousarray(table.features, dtype=np.float32).reshape(-1))
    columns = [table.ids, table.labels, table.groups, table.splits, table.hashes]
    data = {name: pa.array(values, pa.string()) for name, values in zip(COLUMNS, columns)}
    data["features"] = pa.FixedSizeListArray.from_arrays(flat, table.features.shape[1])
    about = {"model": table.model, "about": table.about}
    arrow = pa.table(data).replace_schema_metadata({"saccade": json.dumps(about)})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write the feature table {path}", got=str(error)) from error


def load_table(path: Path) -> FeatureTable:
    """Read what save_table wrote. Raises DataError for other files."""
    try:
        arrow = pq.read_table(path)
        about = json.loads((arrow.schema.metadata or {})[b"saccade"])
        lists = arrow["features"].combine_chunks()
        features = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(arrow), -1)
        ids, labels, groups, splits, hashes = (arrow[name].to_pylist() for name in COLUMNS)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{path} is not a feature table",
            got=str(error).splitlines()[0],
            hint="saccade embed MODEL DATA --out FILE",
        ) from error
    return FeatureTable(features, ids, labels, groups, splits, hashes, about["model"], about["about"])


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay zero."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact cosine neighbours of ``queries`` [Q D] among ``rows`` [N D], nearest first.

    Returns similarities [Q k] float32 and indices [Q k], k capped by N. The queries are shared out over the cores;
    no more than a few megabytes of similarities exist at a time, so N may be in the millions.
    """
    k = min(k, len(rows))
    queries = unit(queries)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    shares = np.array_split(queries, max(1, min(cores, len(queries) // 64)))
    # One thread a product: many products side by side leave no core waiting.
    with threadpool_limits(1), ThreadPoolExecutor(len(shares)) as pool:
        found = list(pool.map(lambda share: _nearest(rows, share, k), shares))
    return np.concatenate([scores for scores, _ in found]), np.concatenate([indices for _, indices in found])


def _nearest(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(queries), k), -np.inf, np.float32)
    where = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(rows), ROWS):
        block = unit(rows[start : start + ROWS]).T
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            _keep_best(queries[part] @ block, start, best[part], where[part])
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)


def _keep_best(similar: np.ndarray, start: int, best: np.ndarray, where: np.ndarray) -> None:
    """Merge similarities [q n] of the rows from ``start`` on into the best k of each query, in place.

    Nearly all blocks hold nearly nothing new, which the largest value of each group of columns tells: they are
    compared with the worst of the best, and only what is above it is looked at.
    """
    (count, width), k = similar.shape, best.shape[1]
    if start == 0:  # nothing to compare with yet
        most = min(k, width)
        top = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        best[:, :most], where[:, :most] = np.take_along_axis(similar, top, 1), top
        return
    whole = width // GROUP * GROUP
    groups = similar[:, :whole].reshape(count, GROUP, -1)  # of every n / GROUP-th column
    worst = best.min(axis=1, keepdims=True)
    query, group = np.nonzero(groups.max(axis=1) > worst) if whole else (np.zeros(0, np.int64),) * 2
    values = groups[query, :, group]
    hit, member = np.nonzero(values > worst[query])
    rest_query, rest_column = np.nonzero(similar[:, whole:] > worst)
    hits = np.concatenate([query[hit], rest_query])
    columns = np.concatenate([member * groups.shape[2] + group[hit], whole + rest_column])
    if not len(hits):
        return
    order = np.argsort(hits, kind="stable")
    hits, columns = hits[order], columns[order]
    touched, begin, counts = np.unique(hits, return_index=True, return_counts=True)
    place = np.arange(len(hits)) - np.repeat(begin, counts)
    row = np.repeat(np.arange(len(touched)), counts)
    values = np.full((len(touched), k + counts.max()), -np.inf, np.float32)
    numbers = np.zeros(values.shape, np.int64)
    values[:, :k], numbers[:, :k] = best[touched], where[touched]
    values[row, k + place], numbers[row, k + place] = similar[hits, columns], start + columns
    top = np.argpartition(-values, k - 1, axis=1)[:, :k]
    best[touched], where[touched] = np.take_along_axis(values, top, 1), np.take_along_axis(numbers, top, 1)
