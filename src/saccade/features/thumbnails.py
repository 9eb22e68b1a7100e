"""The images of a feature table, read from their stored location and verified by content hash."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saccade.base.contracts import Sample, Source
from saccade.data.open import open_source
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiling import Tiling
from saccade.errors import DataError, SaccadeError, first_line
from saccade.features.table import storable

SLIDES = "slides"  # ``rows`` of a table of whole slides
SLIDE_PX = 512


class WholeSlides:
    """Slides as thumbnails; satisfies contracts.Source."""

    def __init__(self, tiles: SlideTiles):
        self.name, self.axes, self._tiles = tiles.name, 2, tiles
        self.records = [entry.record for entry in tiles.entries]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        return Sample(self._tiles.slides[index].thumbnail(SLIDE_PX), self.records[index])

    def content_hash(self, index: int) -> str:
        return self._tiles.hashes[index]


class Pictures:
    """Images by the ids of a table, as 8-bit RGB.

    about   metadata of the table: ``data``, ``labels`` and ``tiling`` locate the images, ``spec`` holds their value
            range, ``rows`` whether they are whole slides
    data    current location of the images, if moved
    A missing image, and one that has changed since it was embedded, is an error.
    """

    def __init__(self, about: Mapping[str, Any], *, data: str | Path | None = None):
        self._about, self._moved = about, data

    @property
    def place(self) -> str:
        return str(self._moved or self._about.get("data", ""))

    @cached_property
    def _source(self) -> Source | str:
        """The source, or the reason why it cannot be opened."""
        if not self.place:
            return "the table does not state the location of its images"
        try:
            tiling = Tiling(**self._about.get("tiling", {}))
            source = open_source(self.place, manifest=None if self._moved else self._about.get("labels"), tiling=tiling)
            if self._about.get("rows") == SLIDES and isinstance(source, SlideTiles):
                return WholeSlides(source)
            return source
        except (SaccadeError, OSError) as error:
            return first_line(error) + f" ({self.place})"

    @cached_property
    def _index(self) -> dict[str, int]:
        if isinstance(self._source, str):
            return {}
        return {str(storable(record.id)): i for i, record in enumerate(self._source.records)}

    def missing(self) -> str | None:
        """The reason why images cannot be read, or None."""
        return self._source if isinstance(self._source, str) else None

    def pixels(self, name: str, sha256: str | None) -> np.ndarray:
        """uint8 [3 Y X] of the image ``name``. Raises DataError when it is missing or has changed."""
        source = self._source
        if isinstance(source, str):
            raise DataError("cannot open the images of the table", got=source, hint="give their location with --data")
        if name not in self._index:
            raise DataError("an image of the table is missing", got=name, expected=f"in {self.place}")
        index = self._index[name]
        if sha256 is not None and source.content_hash(index) != sha256:
            raise DataError("an image has changed since it was embedded", got=name, hint="embed the images again")
        return self.eight_bit(source.read(index).pixels)

    def thumbnail(self, name: str, sha256: str | None, side_px: int) -> bytes:
        """PNG of the image, its longer side at most ``side_px``. Raises DataError like ``pixels``."""
        picture = Image.fromarray(self.pixels(name, sha256).transpose(1, 2, 0))
        picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    def eight_bit(self, pixels: np.ndarray) -> np.ndarray:
        """[C Y X], or the middle slice of [C T Y X], to uint8 [3 Y X].

        Deeper images are scaled by the value range of the table's model, volumes by their own.
        """
        low, scale = float(pixels.min()), float(pixels.max()) - float(pixels.min())
        spec = self._about.get("spec", {})
        if pixels.ndim == 4:
            pixels = pixels[:, pixels.shape[1] // 2]
        elif spec:
            low, scale = float(spec["offset"]), float(spec["scale"])
        if pixels.dtype != np.uint8:
            scaled = (pixels.astype(np.float32) - low) / (scale or 1.0) * 255
            pixels = scaled.round().clip(0, 255).astype(np.uint8)
        return pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0)
