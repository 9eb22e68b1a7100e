"""Features of one slide in one file: where its tiles lie, and a vector for each.

``about`` holds ``slide``, ``slide_sha256``, ``model``, ``model_sha256``, ``mpp``, ``tile_px``, ``tile_px_level0``,
``label``, ``group`` and ``split``, where they are known. Parquet is saccade's own form. No torch here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saccade.errors import DataError, StorageError


@dataclass(frozen=True)
class SlideFeatures:
    """coords [n 2] int64: (x, y) of the upper left corner in pixels of level 0; features [n D] float32."""

    coords: np.ndarray
    features: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)


def save_parquet(path: Path, found: SlideFeatures) -> None:
    """Write the columns ``x``, ``y`` and ``features``, under a temporary name first. Raises StorageError."""
    flat = pa.array(np.ascontiguousarray(found.features, dtype=np.float32).reshape(-1))
    columns = {"x": pa.array(found.coords[:, 0]), "y": pa.array(found.coords[:, 1])}
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, found.features.shape[1])
    table = pa.table(columns).replace_schema_metadata({"saccade_slide": json.dumps(found.about)})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write the features {path}", got=str(error)) from error


def load_parquet(path: Path) -> SlideFeatures:
    """Read what save_parquet wrote. Raises DataError, naming the file, for others."""
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"saccade_slide"])
        lists = table["features"].combine_chunks()
        features = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(table), -1)
        coords = np.stack([np.asarray(table["x"]), np.asarray(table["y"])], axis=1).astype(np.int64)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} holds no features of a slide", got=str(error).splitlines()[0]) from error
    return SlideFeatures(coords, features, about)
