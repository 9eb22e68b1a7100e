"""The attention explorer: where any patch looks, in every layer and head, of any model on the desk.

Rows of numbers travel as float32, little-endian, in row-major order; the page paints them.
"""

# No postponed annotations here: FastAPI could not find ``seen``, which belongs to one desk, by its name.
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from saccade.errors import UsageError
from saccade.web.catalog import Desk
from saccade.web.discover import spelt, written
from saccade.web.images import png

if TYPE_CHECKING:
    from saccade.attention.explorer import Seen
    from saccade.attention.recorded_qkv import Compared

MOST_FLOATS = 2**22  # of one answer: 16 MiB


@dataclass(frozen=True)
class Asked:
    """What every question names: ids of a model and an image, and how it is looked at (see explore.Look)."""

    model: str
    image: str
    size: Annotated[int | None, Query(ge=16, le=2048)] = None
    shuffle: Annotated[int | None, Query(ge=0, lt=2**31)] = None
    positions: bool = True


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/attention")

    def seen(asked: Annotated[Asked, Depends()]) -> "Seen":
        """The look that a question is about; the network runs only if it is not kept."""
        from saccade.attention.explorer import Look

        chosen = desk.model(asked.model)
        how = (asked.size, asked.shuffle, asked.positions)
        look = Look(chosen.model, asked.image, chosen.fresh, *how, written=written(chosen.model))
        return desk.explorer.known(look) or desk.explorer.see(look, desk.sample(asked.image))

    @api.get("/models")
    def models() -> list[dict[str, Any]]:
        return [
            {"id": one.id, "name": spelt(one.name), "run": one.run, "fresh": one.fresh, "axes": one.axes}
            for one in desk.choices()
        ]

    @api.get("/look")
    def look(found: Annotated[Any, Depends(seen)]) -> dict[str, Any]:
        return found.about() | {"name": spelt(found.name)}

    @api.get("/picture")
    def picture(found: Annotated[Any, Depends(seen)]) -> Response:
        return png(found.picture, kept=False)  # a model that is trained anew may see it at another size

    @api.get("/cube")
    def cube(found: Annotated[Any, Depends(seen)]) -> Response:
        """A volume as the network got it: bytes [T Y X]."""
        return Response(found.picture.tobytes(), media_type="application/octet-stream")

    @api.get("/rows")
    def rows(found: Annotated[Any, Depends(seen)], layer: int, first: int, count: int = 1) -> Response:
        """[H R N] of the queries ``first`` and following in one layer."""
        if found.compared is None:
            return numbers(found.similarity(first, count))
        check_count(found.compared.heads * count * found.compared.tokens)
        return numbers(found.compared.rows(layer, first, count))

    @api.get("/fan")
    def fan(found: Annotated[Any, Depends(seen)], token: int) -> Response:
        """[L H N] of one query in every layer."""
        if found.compared is None:
            return numbers(found.similarity(token, 1))
        return numbers(found.compared.fan(token))

    @api.get("/rollout")
    def rollout(found: Annotated[Any, Depends(seen)], first: int, count: int = 1) -> Response:
        """[1 R N]: attention followed through all layers."""
        _attentive(found)
        check_count(count * found.compared.tokens)
        return numbers(found.compared.rollout(first, count)[None])

    @api.get("/nifti")
    def nifti(
        asked: Annotated[Asked, Depends()],
        found: Annotated[Any, Depends(seen)],
        token: int,
        layer: int = 0,
        head: Annotated[int | None, Query(ge=0)] = None,
        rollout: bool = False,
        keep: Annotated[float | None, Query(gt=0, le=1)] = None,
    ) -> Response:
        """The map of one token over a volume, at every voxel, as ``saccade attend`` writes it; no head: their mean."""
        from saccade.attention.explorer import volume_file

        if head is not None and found.compared is not None and head >= found.compared.heads:
            raise UsageError("no such head", got=head, expected=f"0 to {found.compared.heads - 1}")
        values = found.map(token, layer=layer, head=head, rollout=rollout)
        packed = volume_file(found, desk.sample(asked.image), values, keep)
        return Response(packed, media_type="application/gzip")

    @api.get("/pair")
    def pair(found: Annotated[Any, Depends(seen)], layer: int, head: int, query: int, key: int) -> dict[str, Any]:
        """Every number between one query and one key."""
        _attentive(found)
        return pair_numbers(found.compared, layer, head, query, key)

    return api


def numbers(values: np.ndarray) -> Response:
    return Response(np.ascontiguousarray(values, dtype="<f4").tobytes(), media_type="application/octet-stream")


def pair_numbers(compared: "Compared", layer: int, head: int, query: int, key: int) -> dict[str, Any]:
    one = compared.pair(layer, head, query, key)
    known = {name: getattr(one, name) for name in ("dot", "score", "largest", "total", "weight", "rank")}
    vectors = {name: getattr(one, name).tolist() for name in ("query", "key", "value", "products")}
    counts = compared.seen_counts(layer)
    seen = compared.tokens if counts is None else int(counts[query])
    return known | vectors | {"tokens": compared.tokens, "seen": seen}


def check_count(floats: int) -> None:
    """Raise UsageError for an answer of too many numbers."""
    if floats > MOST_FLOATS:
        raise UsageError("too many rows at once", got=f"{floats:,} numbers", expected=f"at most {MOST_FLOATS:,}")


def _attentive(found: "Seen") -> None:
    if found.compared is None:
        raise UsageError(f"{found.name} has no attention", hint="the similarity of its tokens is shown instead")
