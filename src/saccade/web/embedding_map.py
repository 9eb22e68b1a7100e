"""The map of embeddings: images as points, near where their features are similar; search and selection.

Positions and codes of columns are sent as little-endian float32; the page draws them.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Query
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from saccade.base.cache import LruCache
from saccade.base.jobs import State
from saccade.errors import UsageError
from saccade.features.filters import Condition
from saccade.features.stores import written
from saccade.web import discover
from saccade.web.catalog import Catalog, CatalogRun
from saccade.web.embed_job import TABLE, EmbedJobs
from saccade.web.open_table import MOST, OpenedTable
from saccade.web.shell_commands import embed_command

MAX_TABLES = 3  # in memory
USUAL = (TABLE, "features.lance")


class OpenTables:
    """The feature tables of the catalog; the most recently used ones stay open."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._opened: LruCache[str, OpenedTable] = LruCache(MAX_TABLES)
        self._lock = threading.Lock()

    def listed(self) -> list[dict[str, Any]]:
        """Every table; for a run without one, the command that computes it, or that the run is gone."""
        tables: list[dict[str, Any]] = []
        for path in self.catalog.tables:
            tables.append({"id": self.catalog.id_of("table", path), "name": path.rstrip("/").rpartition("/")[2]})
        for run in self.catalog.runs:
            table_path = self._of(run)
            if table_path is None and not discover.is_run(run.folder):
                tables.append({"name": run.name, "run": run.id, "gone": True})
            elif table_path is None:
                command = embed_command(run.folder, run.folder / TABLE)
                tables.append({"name": run.name, "run": run.id, "command": command})
            else:
                tables.append({"id": self.catalog.id_of("table", str(table_path)), "name": run.name, "run": run.id})
        return tables

    def open(self, key: str) -> OpenedTable:
        """The table with this id, reopened when the file has changed. HTTP 404 if there is none."""
        paths = {self.catalog.id_of("table", path): path for path in self.catalog.tables}
        for run in self.catalog.runs:
            if (table_path := self._of(run)) is not None:
                paths[self.catalog.id_of("table", str(table_path))] = str(table_path)
        if key not in paths:
            raise HTTPException(404, "no such table")
        path = Path(paths[key])
        with self._lock:
            table = self._opened.get(key)
            if table is None or table.written != written(paths[key]):
                models = [str(run.folder) for run in self.catalog.runs if run.folder == path.parent]
                table = OpenedTable(paths[key], models)
                self._opened.put(key, table)
            return table

    def _of(self, run: CatalogRun) -> Path | None:
        return next((run.folder / name for name in USUAL if (run.folder / name).exists()), None)


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter(prefix="/map")
    tables = OpenTables(catalog)

    @api.get("")
    def listed() -> list[dict[str, Any]]:
        return list(discover.encodable(tables.listed()))

    making = EmbedJobs()

    @api.get("/embed/{run}")
    def making_state(run: str) -> dict[str, Any]:
        """Progress of the feature table of a run."""
        return _state(making.state(catalog.run(run)))

    @api.post("/embed/{run}")
    def make(run: str) -> dict[str, Any]:
        return _state(making.start(catalog.run(run)))

    @api.post("/embed/{run}/stop")
    def stop_making(run: str) -> dict[str, Any]:
        return _state(making.stop(catalog.run(run)))

    @api.get("/{key}")
    def about(key: str) -> dict[str, Any]:
        return dict(discover.encodable(tables.open(key).about()))

    @api.get("/{key}/places")
    def places(key: str, kind: str = "pca") -> Response:
        """[N 2], the position of every row."""
        return _numbers(tables.open(key).places(kind))

    @api.get("/{key}/values")
    def values(key: str, name: str, clusters: int | None = None) -> list[str]:
        """The values of a column, most frequent first; ``clusters`` is the number of clusters to compute."""
        return tables.open(key).column(name, clusters)[0]

    @api.get("/{key}/codes")
    def codes(key: str, name: str, clusters: int | None = None) -> Response:
        """[N], the index of each row's value."""
        return _numbers(tables.open(key).column(name, clusters)[1])

    @api.get("/{key}/job")
    def job(key: str, kind: str) -> dict[str, Any]:
        return _state(tables.open(key).job(kind))

    @api.post("/{key}/job")
    def start(key: str, kind: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        return _state(tables.open(key).start(kind))

    @api.post("/{key}/cancel")
    def cancel(key: str, kind: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        return _state(tables.open(key).cancel(kind))

    @api.post("/{key}/rows")
    def rows(key: str, numbers: Annotated[list[int], Body(embed=True, max_length=MOST)]) -> list[dict[str, Any]]:
        table = tables.open(key)
        return [table.row(number) | {"row": number} for number in numbers]

    @api.get("/{key}/thumb/{number}")
    def thumb(key: str, number: int, side: Annotated[int, Query(ge=16, le=512)] = 128) -> Response:
        """The page adds the table's stamp to the address, so that a browser may cache the picture."""
        picture = tables.open(key).thumbnail(number, side)
        return Response(picture, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @api.post("/{key}/neighbours")
    def neighbours(key: str, question: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """``row`` or ``upload``, ``k``, ``where`` ([{column, values, negated}]), ``approximate``."""
        return _neighbours(catalog, tables.open(key), question)

    return api


def _state(state: State) -> dict[str, Any]:
    return dict(discover.encodable(dataclasses.asdict(state)))


def _neighbours(catalog: Catalog, table: OpenedTable, question: dict[str, Any]) -> dict[str, Any]:
    """The nearest neighbours of a row or an upload. Raises UsageError for an invalid request; HTTP 404."""
    try:
        k, wish = int(question.get("k", 10)), question.get("approximate")
        where = [Condition(w["column"], tuple(w["values"]), bool(w["negated"])) for w in question.get("where", [])]
        row = None if question.get("row") is None else int(question["row"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("invalid request", got=str(error)) from error
    if row is not None:
        return table.like_row(row, k, where, wish)
    upload = catalog.uploads.get(str(question.get("upload")))
    if upload is None:
        raise HTTPException(404, "no such upload")
    return table.like_upload(upload, k, where, wish)


def _numbers(values: np.ndarray) -> Response:
    return Response(np.ascontiguousarray(values, dtype="<f4").tobytes(), media_type="application/octet-stream")
