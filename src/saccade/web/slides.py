"""Slides: deep zoom, a heatmap of tile similarity, and the attention inside a tile."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from PIL import Image
from starlette.exceptions import HTTPException

from saccade.web.catalog import Catalog, CatalogFolder, CatalogHierarchy
from saccade.web.discover import encodable, named, written
from saccade.web.explorer import numbers
from saccade.web.images import striped, to_display

if TYPE_CHECKING:
    from saccade.attention.background_jobs import SlideProgress
    from saccade.attention.explorer import ViewRequest
    from saccade.data.slides.slide import Slide
    from saccade.data.slides.slide_source import SlideTiles

ZOOM_PX = 256


def finest(slide: Slide) -> int:
    """The pyramid level at full resolution; level 0 is one pixel, each next one twice as fine."""
    return math.ceil(math.log2(max(slide.size_px)))


def square(slide: Slide, level: int, column: int, row: int) -> np.ndarray:
    """One square of the pyramid, uint8 [3 ZOOM_PX ZOOM_PX] or less at the edges.

    Unreadable areas are striped. HTTP 404 outside the slide.
    """
    factor = 2 ** (finest(slide) - level)
    height, width = (math.ceil(side / factor) for side in slide.size_px)
    size = (min(ZOOM_PX, height - row * ZOOM_PX), min(ZOOM_PX, width - column * ZOOM_PX))
    if min(size) < 1 or factor < 1:
        raise HTTPException(404, "outside the slide")
    corner = (column * ZOOM_PX * factor, row * ZOOM_PX * factor)
    pixels, unread = slide.around_damage(*corner, (float(factor), float(factor)), size)
    return striped(to_display(pixels), unread)


def described(tiles: SlideTiles, number: int) -> dict[str, Any]:
    """Geometry of a slide and its grid of tiles, as the page needs it."""
    slide, grid = tiles.slides[number], tiles.grid(number)
    return {
        "size_px": list(slide.size_px),
        "spacing_um": slide.spacing_um,
        "zoom_px": ZOOM_PX,
        "levels": finest(slide),
        "step_px": list(grid.step_px),
        "shape": list(grid.shape),
        "cells": grid.cells.tolist(),
        "tile_px": tiles.tile_px,
        "mpp": tiles.mpp,
    }


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter(prefix="/slides")

    def look(model: str) -> ViewRequest:
        from saccade.attention.explorer import ViewRequest

        chosen = catalog.model(model)
        return ViewRequest(chosen.model, "tiles", chosen.fresh, written=written(chosen.model))

    @api.get("")
    def listed() -> dict[str, Any]:
        """``kind``: "regions" for slides of a hierarchy, "tiles" for others."""
        available, missing = catalog.all_slides()
        slides = [
            {"id": key, "name": name, "run": run.id, "run_name": run.name, "kind": kind_of(run)}
            for key, run, name in available
        ]
        return {"slides": encodable(slides), "missing": encodable([dataclasses.asdict(entry) for entry in missing])}

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        _, tiles, number = catalog.slide(key)
        return described(tiles, number)

    @api.get("/{key}/zoom/{level}/{column}/{row}")
    def zoom(
        key: str,
        level: Annotated[int, Path(ge=0, le=32)],
        column: Annotated[int, Path(ge=0)],
        row: Annotated[int, Path(ge=0)],
    ) -> Response:
        _, tiles, number = catalog.slide(key)
        return jpeg(square(tiles.slides[number], level, column, row))

    @api.post("/{key}/features")
    def start(key: str, model: str) -> dict[str, Any]:
        _, tiles, number = catalog.slide(key)
        return progress(catalog.slide_similarity.start(look(model), key, tiles, number))

    @api.get("/{key}/features")
    def state(key: str, model: str) -> dict[str, Any]:
        state = catalog.slide_similarity.state(look(model), key)
        return progress(state)

    @api.get("/{key}/similarity")
    def similarity(key: str, model: str, tile: int | None = None) -> Response:
        return numbers(catalog.slide_similarity.similarity(look(model), key, tile))

    @api.get("/{key}/tile")
    def tile(key: str, number: Annotated[int, Query(ge=0)]) -> dict[str, Any]:
        """The id of a tile for the explorer."""
        run, tiles, slide = catalog.slide(key)
        indices = tiles.tiles_of(slide)
        if number >= len(indices):
            raise HTTPException(404, "no such tile")
        image = catalog.images(run, int(indices[number]), 1)[1][0]
        return {"id": image.id, "name": encodable(named(image.record.id))}

    return api


def kind_of(run: CatalogFolder) -> str:
    return "regions" if isinstance(run, CatalogHierarchy) else "tiles"


def progress(state: SlideProgress | None) -> dict[str, Any]:
    """Progress of a slide; zero if it was never started."""
    return (
        {"done": 0, "total": 0, "ready": False, "error": ""} if state is None else encodable(dataclasses.asdict(state))
    )


def jpeg(pixels: np.ndarray) -> Response:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "JPEG", quality=88)
    return Response(file.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})
