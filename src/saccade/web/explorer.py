"""The attention explorer: the attention of any patch, in every layer and head of any model of the catalog.

Rows are sent as little-endian float32 in row-major order; the page draws them.
"""

# No postponed annotations here: FastAPI could not resolve ``model_view``, which is local to ``router``.
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from saccade.errors import UsageError, out_of_range
from saccade.web.catalog import Catalog
from saccade.web.discover import encodable, written
from saccade.web.images import png

if TYPE_CHECKING:
    from saccade.attention.explorer import ModelView
    from saccade.attention.recorded_qkv import RecordedQKV

MAX_FLOATS = 2**22  # of one answer: 16 MiB


@dataclass(frozen=True)
class ViewQuery:
    """The parameters of every request: ids of a model and an image, and how the model is given it (see ViewRequest)."""

    model: str
    image: str
    size: Annotated[int | None, Query(ge=16, le=2048)] = None
    shuffle: Annotated[int | None, Query(ge=0, lt=2**31)] = None
    positions: bool = True


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter(prefix="/attention")

    def model_view(asked: Annotated[ViewQuery, Depends()]) -> "ModelView":
        """The view of a request; the network runs only if it is not cached."""
        from saccade.attention.explorer import ViewRequest

        chosen = catalog.model(asked.model)
        how = (asked.size, asked.shuffle, asked.positions)
        look = ViewRequest(chosen.model, asked.image, chosen.fresh, *how, written=written(chosen.model))
        return catalog.explorer.cached(look) or catalog.explorer.view(look, catalog.sample(asked.image))

    @api.get("/models")
    def models() -> list[dict[str, Any]]:
        return [
            {"id": model.id, "name": encodable(model.name), "run": model.run, "fresh": model.fresh, "axes": model.axes}
            for model in catalog.choices()
        ]

    @api.get("/view")
    def look(view: Annotated[Any, Depends(model_view)]) -> dict[str, Any]:
        return view.about() | {"name": encodable(view.name)}

    @api.get("/picture")
    def picture(view: Annotated[Any, Depends(model_view)]) -> Response:
        return png(view.picture, cacheable=False)  # a retrained model may have another input size

    @api.get("/cube")
    def cube(view: Annotated[Any, Depends(model_view)]) -> Response:
        """The input cube of a volume: bytes [T Y X]."""
        return Response(view.picture.tobytes(), media_type="application/octet-stream")

    @api.get("/rows")
    def rows(view: Annotated[Any, Depends(model_view)], layer: int, first: int, count: int = 1) -> Response:
        """[H R N] of ``count`` queries from ``first`` on, in one layer."""
        if view.qkv is None:
            return numbers(view.similarity(first, count))
        check_count(view.qkv.heads * count * view.qkv.tokens)
        return numbers(view.qkv.rows(layer, first, count))

    @api.get("/all-layers")
    def all_layers(view: Annotated[Any, Depends(model_view)], token: int) -> Response:
        """[L H N] of one query in every layer."""
        if view.qkv is None:
            return numbers(view.similarity(token, 1))
        return numbers(view.qkv.all_layers(token))

    @api.get("/rollout")
    def rollout(view: Annotated[Any, Depends(model_view)], first: int, count: int = 1) -> Response:
        """[1 R N], attention rollout."""
        _attentive(view)
        check_count(count * view.qkv.tokens)
        return numbers(view.qkv.rollout(first, count)[None])

    @api.get("/nifti")
    def nifti(
        asked: Annotated[ViewQuery, Depends()],
        view: Annotated[Any, Depends(model_view)],
        token: int,
        layer: int = 0,
        head: Annotated[int | None, Query(ge=0)] = None,
        rollout: bool = False,
        keep: Annotated[float | None, Query(gt=0, le=1)] = None,
    ) -> Response:
        """The map of one token over a volume at every voxel, as ``saccade attend`` writes it; no head: the mean."""
        from saccade.attention.explorer import volume_file

        if head is not None and view.qkv is not None and head >= view.qkv.heads:
            raise out_of_range("head", head, view.qkv.heads - 1)
        values = view.map(token, layer=layer, head=head, rollout=rollout)
        packed = volume_file(view, catalog.sample(asked.image), values, keep)
        return Response(packed, media_type="application/gzip")

    @api.get("/pair")
    def pair(view: Annotated[Any, Depends(model_view)], layer: int, head: int, query: int, key: int) -> dict[str, Any]:
        """Every number between one query and one key."""
        _attentive(view)
        return pair_numbers(view.qkv, layer, head, query, key)

    return api


def numbers(values: np.ndarray) -> Response:
    return Response(np.ascontiguousarray(values, dtype="<f4").tobytes(), media_type="application/octet-stream")


def pair_numbers(qkv: "RecordedQKV", layer: int, head: int, query: int, key: int) -> dict[str, Any]:
    qk_pair = qkv.pair(layer, head, query, key)
    scalars = {name: getattr(qk_pair, name) for name in ("dot", "score", "largest", "total", "weight", "rank")}
    vectors = {name: getattr(qk_pair, name).tolist() for name in ("query", "key", "value", "products")}
    counts = qkv.visible_counts(layer)
    n_visible = qkv.tokens if counts is None else int(counts[query])
    return scalars | vectors | {"tokens": qkv.tokens, "visible": n_visible}


def check_count(floats: int) -> None:
    """Raise UsageError for a response of too many numbers."""
    if floats > MAX_FLOATS:
        raise UsageError("too many rows at once", got=f"{floats:,} numbers", expected=f"at most {MAX_FLOATS:,}")


def _attentive(view: "ModelView") -> None:
    if view.qkv is None:
        raise UsageError(f"{view.name} has no attention", hint="the page shows the similarity of its tokens")
