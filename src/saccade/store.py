"""The feature table: one vector an image with what is known of it, in Parquet; exact search in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saccade.errors import DataError, StorageError

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


def search(table: FeatureTable, query: np.ndarray, k: int, block: int = 65536) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows by cosine similarity, exact: scores [Q k] descending, and their indices [Q k]."""
    k = min(k, len(table))
    query = unit(query)
    best = np.full((len(query), 0), 0.0, np.float32)
    where = np.zeros((len(query), 0), np.int64)
    for start in range(0, len(table), block):
        scores = query @ unit(table.features[start : start + block]).T
        best = np.concatenate([best, scores], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        where = np.concatenate([where, numbers], axis=1)
        if best.shape[1] > k:
            top = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay zero."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
