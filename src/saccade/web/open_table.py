"""One feature table of the map: rows, positions, nearest neighbours. No HTTP; torch is imported for uploads only.

Rows have numbers. A neighbour that is not on the map (of a large table only some rows are drawn) gets the next number.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.base.jobs import NONE, Job, State
from saccade.base.places import located_origin
from saccade.base.random import numpy_generator
from saccade.data.images.decode import decode
from saccade.errors import UsageError, out_of_range, unknown
from saccade.evaluation.knn import vote_label
from saccade.features import projection
from saccade.features.filters import Condition
from saccade.features.stores import approximates, open_store, written
from saccade.features.table import Store
from saccade.features.thumbnails import Pictures
from saccade.web.catalog import Upload

if TYPE_CHECKING:
    from saccade.tasks.search import Searcher

SHOWN = 200_000  # rows of a map
MOST = 500  # neighbours, and rows described at once
CLUSTER = "cluster"


class OpenedTable:
    """An open feature table.

    Parameters
    ----------
    path : str or Path
        The table.
    models : sequence of str
        MODELs that may have made the table; the first whose weights match embeds uploads.
    """

    def __init__(self, path: str | Path, models: Sequence[str] = ()):
        self.written = written(path)  # before reading, so that a write in between is noticed
        self.store: Store = open_store(path)
        if self.store.rows <= SHOWN:
            self.table = self.store.load()
        else:
            chosen = numpy_generator(0, "map").permutation(self.store.rows)[:SHOWN]
            self.table = self.store.load(chosen.tolist())
        origin = located_origin(self.store.about, path)
        self.pictures = Pictures(origin)
        self._made_by = origin.get("made_by")
        self._models = models
        self._columns: dict[str, list[str | None]] = dict(self.table.columns)
        self._rows = {name: row for row, name in enumerate(self.table.ids)}
        self._beyond: list[dict[str, str | None]] = []
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._clustering, self._clusters = threading.Lock(), (0, list[str]())
        self.cluster = CLUSTER  # the computed column; a table may have one of that name
        while self.cluster in self._columns:
            self.cluster += " (k-means)"

    @cached_property
    def _pca(self) -> tuple[np.ndarray, np.ndarray]:
        return projection.pca(self.table.features)

    def about(self) -> dict[str, Any]:
        """The table's facts, as the page needs them."""
        kinds: list[dict[str, Any]] = [{"kind": "pca", "shares": [round(float(share), 4) for share in self._pca[1]]}]
        kinds += [{"kind": kind, "missing": projection.missing(kind)} for kind in projection.KINDS]
        return {
            "model": self.store.model,
            "unit": self.store.about.get("rows", "images"),
            "rows": self.store.rows,
            "shown": len(self.table),
            "width": self.store.width,
            "columns": [
                name for name in self.store.columns if name not in ("id", "sha256") and any(self._columns[name])
            ],
            "cluster": self.cluster,
            "written": self.written,
            "indexed": self.store.indexed,
            "approximate": approximates(self.store, None),
            "pictures": self.pictures.missing(),
            "kinds": kinds,
        }

    # --- what is drawn ------------------------------------------------------------------------------

    def places(self, kind: str) -> np.ndarray:
        """[N 2] float32. Raises UsageError for a projection that has not been computed."""
        if kind == "pca":
            return self._pca[0]
        job = self._jobs.get(kind)
        if job is None or job.result is None:
            raise UsageError("this projection has not been computed", got=kind)
        return job.result

    def column(self, name: str, clusters: int | None = None) -> tuple[list[str], np.ndarray]:
        """The values of a column, most frequent first, and the index of each row's value [N].

        clusters : number of k-means clusters of the column ``self.cluster``, computed on request.
        """
        values_by_row: Sequence[str | None] | None = self._columns.get(name)
        if name == self.cluster and clusters is not None:
            values_by_row = self._clustered(clusters)
        if values_by_row is None:
            raise unknown("column", name, self._columns)
        filled = np.array([value or "" for value in values_by_row], dtype=object)
        values, codes, counts = np.unique(filled, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        rank = np.empty(len(values), np.int64)
        rank[order] = np.arange(len(values))
        return [str(values[i]) for i in order], rank[codes]

    def _clustered(self, count: int) -> list[str]:
        with self._clustering:
            if self._clusters[0] != count:
                assignment = projection.clusters(self.table.features, count)
                self._clusters = count, [f"cluster {number + 1}" for number in assignment.tolist()]
            return self._clusters[1]

    def job(self, kind: str) -> State:
        """The state of a projection."""
        job = self._jobs.get(kind)
        return job.state() if job is not None else NONE

    def start(self, kind: str) -> State:
        """Start computing a projection unless it exists or is running. One at a time: each takes a whole core."""
        with self._lock:
            job = self._jobs.get(kind)
            if job is None or job.state().state in ("failed", "cancelled"):
                busy = next((name for name, other in self._jobs.items() if other.state().state == "running"), None)
                if busy:
                    raise UsageError(f"the projection by {busy} is being computed", hint="wait for it, or cancel it")
                self._jobs[kind] = projection.begin(kind, self.table.features)
            return self._jobs[kind].state()

    def cancel(self, kind: str) -> State:
        if kind in self._jobs:
            self._jobs[kind].cancel()
        return self.job(kind)

    # --- rows -----------------------------------------------------------------------------------------

    def row(self, number: int) -> dict[str, str | None]:
        """The columns of a row. Raises UsageError if there is no such row."""
        if 0 <= number < len(self.table):
            return {name: values[number] for name, values in self._columns.items()}
        if not 0 <= number - len(self.table) < len(self._beyond):
            raise out_of_range("row", number, len(self.table) + len(self._beyond) - 1)
        return self._beyond[number - len(self.table)]

    def thumbnail(self, number: int, side_px: int) -> bytes:
        row = self.row(number)
        return self.pictures.thumbnail(str(row["id"]), row["sha256"], side_px)

    def _number(self, hit: dict[str, str | None]) -> int:
        """The number of a row that a search returned."""
        name = str(hit["id"])
        with self._lock:
            if name not in self._rows:
                self._rows[name] = len(self.table) + len(self._beyond)
                self._beyond.append(hit)
            return self._rows[name]

    def like_row(self, number: int, k: int, where: Sequence[Condition], wish: bool | None) -> dict[str, Any]:
        """Neighbours of a row of the map, the row itself left out."""
        if not 0 <= number < len(self.table):
            raise UsageError("the query must be a row of the map", got=number)
        return self._like(self.table.features[number], k, where, wish, left_out=self.table.ids[number])

    def like_upload(self, upload: Upload, k: int, where: Sequence[Condition], wish: bool | None) -> dict[str, Any]:
        """Neighbours of an uploaded image, embedded by the model that made the table. An identical file has no vote."""
        sample = Sample(decode(upload.data, upload.name), Record(upload.name))
        return self._like(self.searcher.vector(sample), k, where, wish, file=hashlib.sha256(upload.data).hexdigest())

    @cached_property
    def searcher(self) -> Searcher:
        """The model that made the table, if it is in the catalog. The first use imports torch."""
        from saccade.errors import SaccadeError
        from saccade.tasks.search import Searcher

        faults = []
        for model in dict.fromkeys([*self._models, *filter(None, [self._made_by])]):
            try:
                return Searcher(model, self.store)
            except SaccadeError as error:
                faults.append(error)
        raise faults[-1] if faults else UsageError("the model that made the table is missing")

    def _like(
        self,
        vector: np.ndarray,
        k: int,
        where: Sequence[Condition],
        wish: bool | None,
        *,
        left_out: str | None = None,
        file: str | None = None,
    ) -> dict[str, Any]:
        if not 1 <= k <= MOST:
            raise UsageError("number of neighbours", got=k, expected=f"1 to {MOST}")
        approximate = approximates(self.store, wish)
        answer = self.store.nearest_rows(vector, k + (left_out is not None), where, approximate=approximate)
        pairs = [(h, float(s)) for h, s in zip(answer.hits, answer.similarities) if h["id"] != left_out][:k]
        same = [file is not None and hit["sha256"] == file for hit, _ in pairs]
        vote = vote_label(
            [(hit["label"], similarity) for (hit, similarity), is_same in zip(pairs, same) if not is_same]
        )
        hits = [
            hit | {"row": self._number(hit), "similarity": similarity, "same_file": is_same}
            for (hit, similarity), is_same in zip(pairs, same)
        ]
        return {
            "hits": hits,
            "recall": answer.recall.text() if answer.recall else None,
            "guess": vars(vote) if vote else None,
            "rows": self.store.rows,
        }
