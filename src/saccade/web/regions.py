"""Slides of a hierarchy: how much its regions count, and where the class token or any tile of a region looks.

What a region is asked has the form of what the explorer asks of an image, with tiles in the place of patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from saccade.web.catalog import Desk, HierarchyOnDesk
from saccade.web.explorer import check_count, numbers
from saccade.web.images import png, striped, to_display
from saccade.web.slides import progress

if TYPE_CHECKING:
    from saccade.attention.explorer import Seen
    from saccade.hierarchy.explorer import Asked


def _asked(desk: Desk, key: str) -> Asked:
    """HTTP 404 where there is no slide of a hierarchy with this id."""
    from saccade.hierarchy.explorer import Asked

    run, tiles, number = desk.slide(key)
    if not isinstance(run, HierarchyOnDesk):
        raise HTTPException(404, "this slide has no regions")
    return Asked(f"{run.id}/{key}", run.folder, run.head, tiles, number)


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/regions")

    def asked(key: str) -> Asked:
        return _asked(desk, key)

    def seen(key: str, region: int) -> Seen:
        slide = asked(key)
        if region >= len(desk.region_looks.found(slide.key).blocks) or region < 0:
            raise HTTPException(404, "no such region")
        return desk.region_looks.see(slide, region)

    @api.post("/{key}/looks")
    def start(key: str) -> dict[str, Any]:
        return progress(desk.region_looks.start(asked(key)))

    @api.get("/{key}/looks")
    def state(key: str) -> dict[str, Any]:
        return progress(desk.region_looks.state(asked(key).key))

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        run = desk.slide(key)[0]
        found = desk.region_looks.found(asked(key).key).about()
        assert isinstance(run, HierarchyOnDesk)
        return found | {"tile_model": desk.model_id(run.tile)}

    @api.get("/{key}/weights")
    def weights(key: str) -> Response:
        """[R] how much each region counts; 1 is an even share of the slide."""
        return numbers(desk.region_looks.found(asked(key).key).weights.region)

    @api.get("/{key}/tiles")
    def tiles(key: str, composed: bool = False) -> Response:
        """[n] how much each tile counts in its region, or ``composed`` in the slide; NaN outside all regions."""
        return numbers(desk.region_looks.found(asked(key).key).tile_weights(composed=composed))

    @api.get("/{key}/{region}/look")
    def look(key: str, region: int) -> dict[str, Any]:
        found, there = seen(key, region), desk.region_looks.there(asked(key).key, region)
        missing = 0.0 if found.unread is None else float(found.unread.mean())
        return found.about() | {"there": there, "even": 1 / (found.prefix + sum(there)), "unread": missing}

    @api.get("/{key}/{region}/picture")
    def picture(key: str, region: int) -> Response:
        found = seen(key, region)
        picture = to_display(found.picture)
        return png(picture if found.unread is None else striped(picture, found.unread))

    @api.get("/{key}/{region}/rows")
    def rows(key: str, region: int, layer: int, first: int, count: int = 1) -> Response:
        """[H R N] of the tokens ``first`` and following in one layer; the class token is the first of all."""
        compared = seen(key, region).compared
        assert compared is not None
        check_count(compared.heads * count * compared.tokens)
        return numbers(compared.rows(layer, first, count))

    return api
