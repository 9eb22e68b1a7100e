"""GeoJSON for QuPath: squares with scores, in pixels of the full resolution, origin in the upper left corner.

QuPath (from 0.4) reads a FeatureCollection whose features have ``objectType`` (annotation, detection or tile),
``classification`` with name and colour, and ``measurements`` as names with numbers. No torch here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saccade.base.files import write_text
from saccade.errors import UsageError
from saccade.viz.heatmap import TileScores, colours

ObjectType = Literal["annotation", "detection", "tile"]
STEPS = 5  # classes of scores, from low to high
SPACE = uuid.UUID(
    "6b1f7f6e-6f5e-5d0c-9a52-3f3f6d0b8f11"
)  # ids follow from position and name: writing twice gives the same file


def features(
    heat: TileScores, *, object_type: ObjectType = "tile", others: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """One polygon per tile; classes are fifths of the scores.

    Parameters
    ----------
    heat : TileScores
        The scores.
    object_type : {"annotation", "detection", "tile"}
        QuPath's kind of object.
    others : mapping, optional
        Further measurements [n] by name.

    Raises
    ------
    UsageError
        A measurement has another length.
    """
    measurements = {heat.name: heat.scores, **(others or {})}
    for name, values in measurements.items():
        if len(values) != len(heat.coords):
            raise UsageError(f"measurement {name!r} has another length", got=len(values), expected=len(heat.coords))
    steps = np.minimum((heat.unit(heat.scores) * STEPS).astype(int), STEPS - 1)
    palette = colours((np.arange(STEPS) + 0.5) / STEPS).round().astype(int).tolist()
    objects, (down, across) = [], heat.sides_px
    for index, (x, y) in enumerate(heat.coords.tolist()):
        right, bottom = round(x + across, 2), round(y + down, 2)
        step, ring = int(steps[index]), [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        properties: dict[str, Any] = {
            "objectType": object_type,
            "isLocked": True,
            "classification": {"name": f"{heat.name} {step + 1} of {STEPS}", "color": palette[step]},
            "measurements": {
                name: float(values[index]) for name, values in measurements.items() if np.isfinite(values[index])
            },
        }
        if object_type == "annotation":
            properties["name"] = f"{heat.name} {heat.scores[index]:.3g}"
        objects.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(SPACE, f"{heat.name} {x} {y} {heat.side_px}")),
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [ring],
                },
                "properties": properties,
            }
        )
    return objects


def save_geojson(
    path: Path, heat: TileScores, *, object_type: ObjectType = "tile", others: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Write a FeatureCollection for QuPath (File, Import objects from file). Raises StorageError."""
    text = json.dumps(
        {"type": "FeatureCollection", "features": features(heat, object_type=object_type, others=others)},
        ensure_ascii=False,
        allow_nan=False,
    )
    return write_text(path, text)
