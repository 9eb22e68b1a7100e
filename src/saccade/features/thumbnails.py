"""The images behind a feature table: found again where the table says they lay, and checked by their content."""

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

SLIDES = "slides"  # what the rows of a table are, where not images or tiles
SLIDE_PX = 512


class WholeSlides:
    """Slides as images, each seen from afar; satisfies contracts.Source."""

    def __init__(self, tiles: SlideTiles):
        self.name, self.axes, self._tiles = tiles.name, 2, tiles
        self.records = [one.record for one in tiles.entries]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        return Sample(self._tiles.slides[index].thumbnail(SLIDE_PX), self.records[index])

    def content_hash(self, index: int) -> str:
        return self._tiles.hashes[index]


class Pictures:
    """Images by the ids of a table, 8-bit for the eye.

    about   of the table: ``data``, ``labels`` and ``tiling`` say what to open, ``spec`` which range the pixels have
    data    where the images lie now, when they have moved
            ``rows`` whether they are whole slides
    An image that is missing or has other bytes than those that were embedded is not shown.
    """

    def __init__(self, about: Mapping[str, Any], *, data: str | Path | None = None):
        self._about, self._moved = about, data

    @property
    def place(self) -> str:
        return str(self._moved or self._about.get("data", ""))

    @cached_property
    def _source(self) -> Source | str:
        """The source, or why there is none."""
        if not self.place:
            return "the table does not say where its images are"
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
        """Why no image can be shown, or None when the source is there."""
        return self._source if isinstance(self._source, str) else None

    def pixels(self, name: str, sha256: str | None) -> np.ndarray:
        """uint8 [3 Y X] of the image ``name``. Raises DataError when it is not there or not the same any more."""
        source = self._source
        if isinstance(source, str):
            raise DataError("the images of the table are not there", got=source, hint="name their place with --data")
        if name not in self._index:
            raise DataError("an image of the table is not there", got=name, expected=f"in {self.place}")
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

        Deeper images are shown by the range of the table's model, not by clipping; volumes by their own.
        """
        low, scale = float(pixels.min()), float(pixels.max()) - float(pixels.min())
        spec = self._about.get("spec", {})
        if pixels.ndim == 4:
            pixels = pixels[:, pixels.shape[1] // 2]
        elif spec:
            low, scale = float(spec["offset"]), float(spec["scale"])
        if pixels.dtype != np.uint8:
            shown = (pixels.astype(np.float32) - low) / (scale or 1.0) * 255
            pixels = shown.round().clip(0, 255).astype(np.uint8)
        return pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0)
