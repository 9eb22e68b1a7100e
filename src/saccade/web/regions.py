"""Slides of a hierarchy: weights of its regions, and the attention of the class token or any tile inside a region.

A region has the same endpoints as an image of the explorer, with tiles in place of patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from saccade.web.catalog import Catalog, CatalogHierarchy
from saccade.web.explorer import check_count, numbers
from saccade.web.images import png, striped, to_display
from saccade.web.slides import progress

if TYPE_CHECKING:
    from saccade.attention.explorer import ModelView
    from saccade.hierarchy.explorer import SlideRequest


def _request(catalog: Catalog, key: str) -> SlideRequest:
    """HTTP 404 if there is no slide of a hierarchy with this id."""
    from saccade.hierarchy.explorer import SlideRequest

    run, tiles, number = catalog.slide(key)
    if not isinstance(run, CatalogHierarchy):
        raise HTTPException(404, "this slide has no regions")
    return SlideRequest(f"{run.id}/{key}", run.folder, run.head, tiles, number)


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter(prefix="/regions")

    def slide_request(key: str) -> SlideRequest:
        return _request(catalog, key)

    def region_view(key: str, region: int) -> ModelView:
        slide = slide_request(key)
        if region >= len(catalog.region_views.regions(slide.key).blocks) or region < 0:
            raise HTTPException(404, "no such region")
        return catalog.region_views.view(slide, region)

    @api.post("/{key}/attention")
    def start(key: str) -> dict[str, Any]:
        return progress(catalog.region_views.start(slide_request(key)))

    @api.get("/{key}/attention")
    def state(key: str) -> dict[str, Any]:
        return progress(catalog.region_views.state(slide_request(key).key))

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        run = catalog.slide(key)[0]
        regions = catalog.region_views.regions(slide_request(key).key).about()
        assert isinstance(run, CatalogHierarchy)
        return regions | {"tile_model": catalog.model_id(run.tile)}

    @api.get("/{key}/weights")
    def weights(key: str) -> Response:
        """[R], the weight of each region in multiples of the even share."""
        return numbers(catalog.region_views.regions(slide_request(key).key).weights.region)

    @api.get("/{key}/tiles")
    def tiles(key: str, composed: bool = False) -> Response:
        """[n], the weight of each tile in its region, or ``composed`` in the slide; NaN outside all regions."""
        return numbers(catalog.region_views.regions(slide_request(key).key).tile_weights(composed=composed))

    @api.get("/{key}/{region}/view")
    def look(key: str, region: int) -> dict[str, Any]:
        view, has_tile = region_view(key, region), catalog.region_views.has_tile(slide_request(key).key, region)
        missing = 0.0 if view.unread is None else float(view.unread.mean())
        return view.about() | {"has_tile": has_tile, "even": 1 / (view.prefix + sum(has_tile)), "unread": missing}

    @api.get("/{key}/{region}/picture")
    def picture(key: str, region: int) -> Response:
        view = region_view(key, region)
        picture = to_display(view.picture)
        return png(picture if view.unread is None else striped(picture, view.unread))

    @api.get("/{key}/{region}/rows")
    def rows(key: str, region: int, layer: int, first: int, count: int = 1) -> Response:
        """[H R N] of ``count`` tokens from ``first`` on, in one layer; the class token is token 0."""
        qkv = region_view(key, region).qkv
        assert qkv is not None
        check_count(qkv.heads * count * qkv.tokens)
        return numbers(qkv.rows(layer, first, count))

    return api
