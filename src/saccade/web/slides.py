"""Slides: deep zoom, a heatmap of tiles that are like the one clicked, and from a tile on to its patches."""

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

from saccade.web.catalog import Desk, HierarchyOnDesk, OnDesk
from saccade.web.discover import named, spelt, written
from saccade.web.explorer import numbers
from saccade.web.images import striped, to_display

if TYPE_CHECKING:
    from saccade.attention.background_jobs import State
    from saccade.attention.explorer import Look
    from saccade.data.slides.slide import Slide
    from saccade.data.slides.slide_source import SlideTiles

ZOOM_PX = 256


def finest(slide: Slide) -> int:
    """The level of the pyramid at full resolution: level 0 is one pixel, each next one twice as fine."""
    return math.ceil(math.log2(max(slide.size_px)))


def square(slide: Slide, level: int, column: int, row: int) -> np.ndarray:
    """One square of the pyramid for the eye, uint8 [3 ZOOM_PX ZOOM_PX] or less at the edges.

    What cannot be read in the file is striped; the rest is there. HTTP 404 outside the slide.
    """
    factor = 2 ** (finest(slide) - level)
    height, width = (math.ceil(side / factor) for side in slide.size_px)
    size = (min(ZOOM_PX, height - row * ZOOM_PX), min(ZOOM_PX, width - column * ZOOM_PX))
    if min(size) < 1 or factor < 1:
        raise HTTPException(404, "outside the slide")
    place = (column * ZOOM_PX * factor, row * ZOOM_PX * factor)
    pixels, unread = slide.around_damage(*place, (float(factor), float(factor)), size)
    return striped(to_display(pixels), unread)


def described(tiles: SlideTiles, number: int) -> dict[str, Any]:
    """What the page must know to draw a slide and its grid of tiles."""
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


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/slides")

    def look(model: str) -> Look:
        from saccade.attention.explorer import Look

        chosen = desk.model(model)
        return Look(chosen.model, "tiles", chosen.fresh, written=written(chosen.model))

    @api.get("")
    def listed() -> dict[str, Any]:
        """``kind``: of a hierarchy's slides ``regions``, of others ``tiles``."""
        found, missing = desk.all_slides()
        slides = [
            {"id": key, "name": name, "run": run.id, "run_name": run.name, "kind": kind_of(run)}
            for key, run, name in found
        ]
        return {"slides": spelt(slides), "missing": spelt([dataclasses.asdict(one) for one in missing])}

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        _, tiles, number = desk.slide(key)
        return described(tiles, number)

    @api.get("/{key}/zoom/{level}/{column}/{row}")
    def zoom(
        key: str,
        level: Annotated[int, Path(ge=0, le=32)],
        column: Annotated[int, Path(ge=0)],
        row: Annotated[int, Path(ge=0)],
    ) -> Response:
        _, tiles, number = desk.slide(key)
        return jpeg(square(tiles.slides[number], level, column, row))

    @api.post("/{key}/looks")
    def start(key: str, model: str) -> dict[str, Any]:
        _, tiles, number = desk.slide(key)
        return progress(desk.slide_looks.start(look(model), key, tiles, number))

    @api.get("/{key}/looks")
    def state(key: str, model: str) -> dict[str, Any]:
        found = desk.slide_looks.state(look(model), key)
        return progress(found)

    @api.get("/{key}/likeness")
    def likeness(key: str, model: str, tile: int | None = None) -> Response:
        return numbers(desk.slide_looks.likeness(look(model), key, tile))

    @api.get("/{key}/tile")
    def tile(key: str, number: Annotated[int, Query(ge=0)]) -> dict[str, Any]:
        """The id under which the explorer knows a tile."""
        run, tiles, slide = desk.slide(key)
        indices = tiles.tiles_of(slide)
        if number >= len(indices):
            raise HTTPException(404, "no such tile")
        image = desk.images(run, int(indices[number]), 1)[1][0]
        return {"id": image.id, "name": spelt(named(image.record.id))}

    return api


def kind_of(run: OnDesk) -> str:
    return "regions" if isinstance(run, HierarchyOnDesk) else "tiles"


def progress(state: State | None) -> dict[str, Any]:
    """How far a look at a slide is; nothing where nobody has asked for one."""
    return {"done": 0, "total": 0, "ready": False, "error": ""} if state is None else spelt(dataclasses.asdict(state))


def jpeg(pixels: np.ndarray) -> Response:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "JPEG", quality=88)
    return Response(file.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})
