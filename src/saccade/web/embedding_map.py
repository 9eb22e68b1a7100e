"""The map of embeddings: which images a model finds alike, seen as points, searched, selected.

Positions and codes of columns travel as float32, little-endian; the page paints them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Query
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from saccade.base.jobs import State
from saccade.errors import UsageError
from saccade.features.filters import Condition
from saccade.features.stores import written
from saccade.web import discover
from saccade.web.catalog import Desk, RunOnDesk
from saccade.web.embed_job import TABLE, Making
from saccade.web.open_table import MOST, OpenedTable
from saccade.web.shell_commands import embed_command

KEPT = 3  # tables in memory
USUAL = (TABLE, "features.lance")


class Shelf:
    """The tables that may be looked at: those of the runs on the desk, and those that were named."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self._opened: OrderedDict[str, OpenedTable] = OrderedDict()
        self._lock = threading.Lock()

    def listed(self) -> list[dict[str, Any]]:
        """Every table; for a run without one, the command that makes it, or that it has gone."""
        found: list[dict[str, Any]] = []
        for place in self.desk.tables:
            found.append({"id": self.desk.id_of("table", place), "name": place.rstrip("/").rpartition("/")[2]})
        for run in self.desk.runs:
            own = self._of(run)
            if own is None and not discover.is_run(run.folder):
                found.append({"name": run.name, "run": run.id, "gone": True})
            elif own is None:
                command = embed_command(run.folder, run.folder / TABLE)
                found.append({"name": run.name, "run": run.id, "command": command})
            else:
                found.append({"id": self.desk.id_of("table", str(own)), "name": run.name, "run": run.id})
        return found

    def open(self, key: str) -> OpenedTable:
        """The table with this id, read again when it was written anew. HTTP 404 where there is none."""
        places = {self.desk.id_of("table", place): place for place in self.desk.tables}
        for run in self.desk.runs:
            if (found := self._of(run)) is not None:
                places[self.desk.id_of("table", str(found))] = str(found)
        if key not in places:
            raise HTTPException(404, "no such table")
        place = Path(places[key])
        with self._lock:
            if key not in self._opened or self._opened[key].written != written(places[key]):
                models = [str(run.folder) for run in self.desk.runs if run.folder == place.parent]
                self._opened[key] = OpenedTable(places[key], models)
            self._opened.move_to_end(key)
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
            return self._opened[key]

    def _of(self, run: RunOnDesk) -> Path | None:
        return next((run.folder / name for name in USUAL if (run.folder / name).exists()), None)


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/atlas")
    shelf = Shelf(desk)

    @api.get("")
    def listed() -> list[dict[str, Any]]:
        return list(discover.spelt(shelf.listed()))

    making = Making()

    @api.get("/made/{run}")
    def making_state(run: str) -> dict[str, Any]:
        """How far the feature table of a run is."""
        return _said(making.state(desk.run(run)))

    @api.post("/made/{run}")
    def make(run: str) -> dict[str, Any]:
        return _said(making.start(desk.run(run)))

    @api.post("/made/{run}/stop")
    def stop_making(run: str) -> dict[str, Any]:
        return _said(making.stop(desk.run(run)))

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        return dict(discover.spelt(shelf.open(key).about()))

    @api.get("/{key}/places")
    def places(key: str, kind: str = "pca") -> Response:
        """[N 2]: where every row lies."""
        return _numbers(shelf.open(key).places(kind))

    @api.get("/{key}/values")
    def values(key: str, name: str, clusters: int | None = None) -> list[str]:
        """The values of a column, the most frequent first; ``clusters``: so many in the one that is made."""
        return shelf.open(key).column(name, clusters)[0]

    @api.get("/{key}/codes")
    def codes(key: str, name: str, clusters: int | None = None) -> Response:
        """[N]: which of the values each row has."""
        return _numbers(shelf.open(key).column(name, clusters)[1])

    @api.get("/{key}/job")
    def job(key: str, kind: str) -> dict[str, Any]:
        return _said(shelf.open(key).job(kind))

    @api.post("/{key}/job")
    def start(key: str, kind: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        return _said(shelf.open(key).start(kind))

    @api.post("/{key}/cancel")
    def cancel(key: str, kind: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        return _said(shelf.open(key).cancel(kind))

    @api.post("/{key}/rows")
    def rows(key: str, numbers: Annotated[list[int], Body(embed=True, max_length=MOST)]) -> list[dict[str, Any]]:
        table = shelf.open(key)
        return [table.row(number) | {"row": number} for number in numbers]

    @api.get("/{key}/thumb/{number}")
    def thumb(key: str, number: int, side: Annotated[int, Query(ge=16, le=512)] = 128) -> Response:
        """The page adds what ``about`` says of the writing to the address, so a browser may keep the picture."""
        picture = shelf.open(key).thumbnail(number, side)
        return Response(picture, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @api.post("/{key}/neighbours")
    def neighbours(key: str, question: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """``row`` or ``upload``, ``k``, ``where`` ([{column, values, negated}]), ``approximate``."""
        return _alike(desk, shelf.open(key), question)

    return api


def _said(state: State) -> dict[str, Any]:
    return dict(discover.spelt(dataclasses.asdict(state)))


def _alike(desk: Desk, table: OpenedTable, question: dict[str, Any]) -> dict[str, Any]:
    """What is most like a row or an upload. Raises UsageError for a question that does not fit; HTTP 404."""
    try:
        k, wish = int(question.get("k", 10)), question.get("approximate")
        where = [Condition(w["column"], tuple(w["values"]), bool(w["negated"])) for w in question.get("where", [])]
        row = None if question.get("row") is None else int(question["row"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("the question does not fit", got=str(error)) from error
    if row is not None:
        return table.like_row(row, k, where, wish)
    upload = desk.uploads.get(str(question.get("upload")))
    if upload is None:
        raise HTTPException(404, "no such upload")
    return table.like_upload(upload, k, where, wish)


def _numbers(values: np.ndarray) -> Response:
    return Response(np.ascontiguousarray(values, dtype="<f4").tobytes(), media_type="application/octet-stream")
