"""``saccade search``: the images of a feature table that are most similar to a query image.

The query is embedded as the images of the table were: by the same weights (verified by their hash), at the same size
and in the same value range. Vectors of different models cannot be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from saccade import runtime
from saccade.base import frames
from saccade.base.contracts import InputSpec, Record, Sample
from saccade.base.files import write_bytes
from saccade.base.places import located_origin
from saccade.data.formats import has_suffix
from saccade.data.images.decode import decode
from saccade.data.open import open_source
from saccade.errors import DataError, ModelError, UsageError
from saccade.evaluation.knn import LabelVote, vote_label
from saccade.features.embed_images import embed_one
from saccade.features.filters import parse
from saccade.features.stores import approximates, open_store
from saccade.features.table import Neighbours, Store
from saccade.features.thumbnails import SLIDES, Pictures
from saccade.models.backbones.weights import LoadedModel, fingerprint, load_model
from saccade.viz.overlays import Neighbour, hits_panel


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Options of ``search``.

    Parameters
    ----------
    k : int
        Number of neighbours.
    where : str
        Filter, e.g. ``label=a,b split=train``; "" takes all rows.
    approximate : bool, optional
        Use the index of a table in LanceDB; None: only above a million rows.
    data : Path, optional
        Current location of the images, if moved.
    """

    k: int = 10
    where: str = ""
    approximate: bool | None = None
    data: Path | None = None


class Searcher:
    """A model and a table that it made; embeds queries for the table."""

    def __init__(self, model: str | Path, store: Store):
        self.store = store
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in store.about.get("spec", {}).items()
        }
        if store.about.get("rows") == SLIDES:
            raise ModelError(
                f"the rows of {store.place} are whole slides",
                got=model,
                expected=store.model,
                hint="search with that hierarchy and a slide: saccade search HIERARCHY SLIDE",
            )
        if not values or "weights" not in store.about:
            raise DataError(
                f"{store.place} does not state which weights made it",
                hint="it was written by an older version; write it again: saccade embed MODEL DATA --out FILE",
            )
        self.spec = InputSpec(**values)
        self.model: LoadedModel = load_model(model, channels=self.spec.channels, size_px=self.spec.size_px)
        weights, expected = fingerprint(self.model.backbone), store.about["weights"]
        if weights != expected:
            raise ModelError(
                f"{store.place} was made by another model",
                got=f"{self.model.name}, weights {weights}",
                expected=f"{store.model}, weights {expected}",
                hint="search with that model, or embed the images again with this one",
            )
        self.device = runtime.pick_device()

    def vector(self, sample: Sample) -> np.ndarray:
        """The vector [D] of an image or volume. Raises ModelError for an image where the table holds volumes."""
        precision = str(self.store.about.get("precision") or runtime.usual_precision(self.device))
        return embed_one(self.model, self.spec, sample, device=self.device, precision=precision)


@dataclasses.dataclass(frozen=True)
class Query:
    """The query: its name, its pixels [C Y X] or [C T Y X], and the hash of its content."""

    name: str
    pixels: np.ndarray
    sha256: str


@dataclasses.dataclass(frozen=True)
class SearchResult(frames.Tabular):
    """The neighbours of one query.

    Attributes
    ----------
    query : str
        Name of the query.
    pixels : uint8 array [3 Y X]
        The query as 8-bit RGB.
    neighbours : Neighbours
        Rows of the table, most similar first.
    same : list of bool
        Whether a neighbour is the query file itself; such a neighbour does not vote.
    guess : Guess, optional
        The label predicted by the vote; None without labels.
    """

    query: str
    pixels: np.ndarray
    store: Store
    options: SearchOptions
    neighbours: Neighbours
    same: list[bool]
    guess: LabelVote | None
    pictures: Pictures

    def text(self) -> str:
        """A table for the terminal."""
        columns = [name for name in ("label", "group", "split") if any(hit[name] for hit in self.neighbours.hits)]
        if not self.neighbours.hits:
            return f"no row of {self.store.place} matches {self.options.where}"
        rows = [["", "similarity", *columns, "image"]]
        for index, hit in enumerate(self.neighbours.hits):
            values = [hit[name] or "" for name in columns]
            note = " (the query itself)" if self.same[index] else ""
            rows.append([str(index + 1), f"{self.neighbours.similarities[index]:.4f}", *values, f"{hit['id']}{note}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
        filtered = f", {self.options.where}" if self.options.where else ""
        how = self.neighbours.recall.text() if self.neighbours.recall else "exact"
        count = f"{self.store.rows:,} {self.store.about.get('rows', 'images')}"
        lines += ["", f"{count} in {self.store.place}, {self.store.model}{filtered}; {how}"]
        return "\n".join(lines + ([self.guess.text()] if self.guess else []))

    def rows(self) -> list[dict[str, Any]]:
        """One dict per neighbour: its columns, rank, cosine similarity, and whether it is the query file itself."""
        similarities = [round(float(value), 6) for value in self.neighbours.similarities]
        return [
            hit | {"rank": rank, "similarity": similarity, "same_file": same}
            for rank, (hit, similarity, same) in enumerate(zip(self.neighbours.hits, similarities, self.same), start=1)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "store": self.store.place,
            "rows": self.store.rows,
            "model": self.store.model,
            "weights": self.store.about["weights"],
            "where": self.options.where,
            "exact": self.neighbours.recall is None,
            "recall": dataclasses.asdict(self.neighbours.recall) if self.neighbours.recall else None,
            "guess": dataclasses.asdict(self.guess) if self.guess else None,
            "hits": self.rows(),
        }

    def frame_columns(self) -> dict[str, list[Any]]:
        """The neighbours."""
        return frames.columns_of(self.rows())

    def _repr_html_(self) -> str:
        return frames.to_html(f"Most similar to {self.query}", self.frame_columns())

    def save_sheet(self, path: Path) -> list[str]:
        """Write a contact sheet (PNG) of the query and its neighbours. Returns a message for each missing image."""
        if path.suffix.lower() != ".png":
            raise UsageError("a contact sheet must be a PNG file", got=path)
        neighbours, faults = [], []
        for hit, score in zip(self.neighbours.hits, self.neighbours.similarities):
            try:
                pixels = self.pictures.pixels(str(hit["id"]), hit["sha256"])
            except DataError as error:
                faults.append(str(error))
                pixels = np.zeros((3, 1, 1), np.uint8)
            neighbours.append(Neighbour(pixels, hit["label"], float(score)))
        if neighbours and len(faults) == len(neighbours):
            raise DataError("all images of the neighbours are missing", got=faults[0])
        write_bytes(path, hits_panel(self.pixels, neighbours))
        return faults


def read_query(path: Path) -> tuple[Sample, str]:
    """The query image or volume, and the hash of its file."""
    if not path.exists():
        raise DataError("image file not found", got=path)
    if path.is_file() and has_suffix(path.name, "image"):
        data = path.read_bytes()
        return Sample(decode(data, str(path)), Record(str(path))), hashlib.sha256(data).hexdigest()
    source = open_source(path)
    if len(source) != 1:
        raise UsageError("search takes one image", got=f"{len(source):,} in {path}")
    return source.read(0), source.content_hash(0)


def search(model: str | Path, image: str | Path, location: str | Path, options: SearchOptions) -> SearchResult:
    """The nearest neighbours of an image file in a feature table; see SearchOptions."""
    store = open_store(location)
    sample, digest = read_query(Path(image))
    vector = Searcher(model, store).vector(sample)
    return find_neighbours(store, vector, Query(str(image), sample.pixels, digest), options)


def find_neighbours(store: Store, vector: np.ndarray, query: Query, options: SearchOptions) -> SearchResult:
    """The nearest neighbours of a vector [D] in a feature table, and the label they vote for."""
    if options.k < 1:
        raise UsageError("--k must be 1 or more", got=options.k)
    approximate = approximates(store, options.approximate)
    neighbours = store.nearest_rows(vector, options.k, parse(options.where), approximate=approximate)
    same = [hit["sha256"] == query.sha256 for hit in neighbours.hits]
    voters = [
        (hit["label"], float(s))
        for hit, s, is_query in zip(neighbours.hits, neighbours.similarities, same)
        if not is_query
    ]
    pictures = Pictures(located_origin(store.about, store.place), data=options.data)
    pixels = pictures.eight_bit(query.pixels)
    return SearchResult(query.name, pixels, store, options, neighbours, same, vote_label(voters), pictures)
