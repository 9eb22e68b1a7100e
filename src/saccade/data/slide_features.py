"""Features of the tiles of a slide, one file a slide: HDF5 as users of TRIDENT have it, or Parquet.

HDF5: datasets ``coords`` (n, 2) int64, x and y in pixels of level 0, and ``features`` (n, D) float32; how the tiles
were cut is in attributes of ``coords`` (patch_size, patch_size_level0, level0_magnification, target_magnification,
overlap, name). ``about`` lies beside them as JSON, in an attribute of the file or in the metadata of Parquet.
No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saccade.base.files import write_file
from saccade.data.formats import by_name
from saccade.data.hdf5_heap import check_global_heaps
from saccade.data.limits import check_claim, damage_named
from saccade.data.parquet import read_bounded
from saccade.errors import DamagedFile, MissingDependency, SaccadeError, first_line, require

ABOUT = "saccade_slide"
FLOAT_BYTES = 4  # of a feature in memory, also where a file has fewer
MAGNIFICATION_UM = 10.0  # micrometres a pixel times magnification: 20x has 0.5


@dataclass(frozen=True)
class SlideFeatures:
    """Features of one slide.

    coords    [n 2] int64: (x, y) of each tile's corner in pixels of level 0
    features  [n D] float32
    about     slide, slide_sha256, model, model_sha256, mpp, tile_px, tile_px_level0 (x, not whole), tile_px_level0_y
              (only where pixels are not square; see ``step_of``), slide_px (rows, columns), label, group, split; what a
              file of another program does not say is missing
    """

    coords: np.ndarray
    features: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coords)


def step_of(about: Mapping[str, Any]) -> tuple[float, float]:
    """(y, x): side of a tile in pixels of level 0, not whole. Raises KeyError where a file does not say."""
    across = float(about["tile_px_level0"])
    return float(about.get("tile_px_level0_y", across)), across


def about_step(down: float, across: float) -> dict[str, float]:
    """What ``about`` says of the side of a tile, (y, x) in pixels of level 0."""
    return {"tile_px_level0": across} | ({} if down == across else {"tile_px_level0_y": down})


def save_features(path: Path, features: SlideFeatures) -> None:
    """Write HDF5 or Parquet by the suffix."""
    save_h5(path, features) if path.suffix == ".h5" else save_parquet(path, features)


def save_h5(path: Path, features: SlideFeatures) -> None:
    """Write HDF5, under a temporary name first. Raises StorageError."""
    write_file(path, lambda temporary: _write_h5(temporary, features, path.parent))


def save_parquet(path: Path, features: SlideFeatures) -> None:
    """Write the columns ``x``, ``y`` and ``features``, under a temporary name first. Raises StorageError."""
    write_file(path, lambda temporary: _write_parquet(temporary, features))


def load_features(path: Path) -> SlideFeatures:
    """Read the feature file of a slide: HDF5 (TRIDENT, CLAM, saccade), Parquet, or a format of a plug-in.

    Raises DataError, naming the file, for anything else.
    """
    card = by_name(path.name, "features")
    with damage_named(str(path), "is not a feature file of a slide"):
        features: SlideFeatures = card.load()(path) if card else load_parquet(path)
    return features


def load_h5(path: Path) -> SlideFeatures:
    """Read the features of a slide, also of other programs. Raises DataError, naming the file, for others."""
    return _load(path, _read_h5)


def load_parquet(path: Path) -> SlideFeatures:
    """Read what save_parquet wrote. Raises DataError, naming the file, for others."""
    return _load(path, _read_parquet)


def _load(path: Path, read: Callable[[Path], SlideFeatures]) -> SlideFeatures:
    try:
        return read(path)
    except SaccadeError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = first_line(error)
        raise DamagedFile(
            f"{path} is not a feature file of a slide", got=reason, expected="coords (n, 2) and features (n, D)"
        ) from error


def _write_h5(path: Path, features: SlideFeatures, folder: Path) -> None:
    h5py = require("h5py", "slides", "writing HDF5")
    about = dict(features.about)
    attributes: dict[str, Any] = {
        "overlap": 0,
        "name": Path(str(about.get("slide", ""))).stem,
        "savetodir": folder.name,
    }
    if about.get("tile_px"):
        attributes["patch_size"] = int(about["tile_px"])
    if about.get("tile_px_level0"):
        attributes["patch_size_level0"] = round(about["tile_px_level0"])
    if about.get("mpp"):
        attributes["target_magnification"] = round(MAGNIFICATION_UM / about["mpp"], 4)
        attributes["mpp"] = about["mpp"]
    if about.get("mpp") and about.get("tile_px") and about.get("tile_px_level0"):
        finest = about["mpp"] * about["tile_px"] / about["tile_px_level0"]
        attributes |= {"level0_magnification": round(MAGNIFICATION_UM / finest), "level0_mpp": finest}
    if about.get("slide_px"):
        attributes |= {"level0_height": int(about["slide_px"][0]), "level0_width": int(about["slide_px"][1])}
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.asarray(features.coords, np.int64))
        coords.attrs.update(attributes)
        vectors = file.create_dataset("features", data=np.asarray(features.features, np.float32))
        vectors.attrs.update({"name": attributes["name"], "savetodir": attributes["savetodir"]})
        file.attrs[ABOUT] = json.dumps(about)


def _read_h5(path: Path) -> SlideFeatures:
    h5py = require("h5py", "slides", "reading HDF5")
    check_global_heaps(path)
    with h5py.File(path, "r") as file:
        for name in ("coords", "features"):
            _check_dataset(h5py, file, name, path)
        coords, features = np.asarray(file["coords"]), np.asarray(file["features"], np.float32)
        attributes = {**file.attrs, **file["coords"].attrs}
    about: dict[str, Any] = {"slide": str(attributes.get("name") or path.stem)}
    if ABOUT in attributes:
        about = json.loads(attributes[ABOUT])
    else:
        if "patch_size" in attributes:
            about["tile_px"] = int(attributes["patch_size"])
        if "patch_size_level0" in attributes:
            about["tile_px_level0"] = float(attributes["patch_size_level0"])
        if float(attributes.get("target_magnification", 0)) > 0:
            about["mpp"] = MAGNIFICATION_UM / float(attributes["target_magnification"])
        if "level0_height" in attributes:
            about["slide_px"] = [int(attributes["level0_height"]), int(attributes["level0_width"])]
    return _checked(coords.reshape(-1, 2), features.reshape(-1, features.shape[-1]), about)


def _check_dataset(h5py: Any, file: Any, name: str, path: Path) -> None:
    """Raise DamagedFile for a dataset that is large, or in another file: links out of a file are not followed."""
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(name)
    if isinstance(link, h5py.HardLink):
        dataset = file[name]
        if isinstance(dataset, h5py.Dataset) and not dataset.external and not dataset.is_virtual:
            values = math.prod(dataset.shape or (0,))
            check_claim(values * max(dataset.dtype.itemsize, FLOAT_BYTES), dataset.id.get_storage_size(), str(path))
            return
    raise DamagedFile(
        f"{path}: {name} is not a dataset of this file",
        got=type(link).__name__ if not isinstance(link, h5py.HardLink) else "a group, or data in another file",
        expected="numbers in the file itself; links to other files are not followed",
    )


def _write_parquet(path: Path, features: SlideFeatures) -> None:
    flat = pa.array(np.ascontiguousarray(features.features, dtype=np.float32).reshape(-1))
    data = {
        "x": pa.array(features.coords[:, 0], pa.int64()),
        "y": pa.array(features.coords[:, 1], pa.int64()),
        "features": pa.FixedSizeListArray.from_arrays(flat, features.features.shape[1]),
    }
    pq.write_table(pa.table(data).replace_schema_metadata({ABOUT: json.dumps(features.about)}), path)


def _read_parquet(path: Path) -> SlideFeatures:
    table = read_bounded(path, path.stat().st_size, str(path))
    about = json.loads((table.schema.metadata or {})[ABOUT.encode()])
    lists = table["features"].combine_chunks()
    width = table.schema.field("features").type.list_size  # also of a slide without tiles
    features = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(table), width)
    return _checked(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1), features, about)


def _checked(coords: np.ndarray, features: np.ndarray, about: dict[str, Any]) -> SlideFeatures:
    if len(coords) != len(features):
        raise ValueError(f"{len(coords)} coordinates and {len(features)} features")
    return SlideFeatures(coords.astype(np.int64), features, about)


def read_about(path: Path) -> dict[str, Any]:
    """What a file says of itself, without its features; empty where it says nothing or cannot be read."""
    try:
        if path.suffix == ".parquet":
            return dict(json.loads((pq.read_schema(path).metadata or {})[ABOUT.encode()]))
        h5py = require("h5py", "slides", "reading HDF5")
        check_global_heaps(path)
        with h5py.File(path, "r") as file:
            return dict(json.loads(file.attrs[ABOUT]))
    except MissingDependency:
        raise
    except Exception:  # decoders raise nearly anything on broken bytes
        return {}
