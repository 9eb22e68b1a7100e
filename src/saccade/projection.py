"""Maps of a feature table: its rows as points of a plane, and groups among them.

PCA is exact and there at once. t-SNE (van der Maaten and Hinton 2008, by openTSNE) and UMAP (McInnes et al. 2018,
by umap-learn) bring neighbours together; distances between far points mean nothing in them. They take minutes, so
``Job`` runs them in a process of their own, says how far they are, and can end them at any time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import threading
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from saccade.errors import MissingDependency, UsageError, require, unknown
from saccade.seeds import numpy_generator
from saccade.store import unit

KINDS = {"tsne": ("openTSNE", "map"), "umap": ("umap", "umap")}  # module, extra
WIDTH = 50  # principal components that t-SNE and UMAP begin from
FITTED = 20_000  # rows that k-means looks for its centres in
ITERATIONS = (250, 500)  # of t-SNE: with exaggeration, without
Report = Any  # (share done, what is being done) -> whether to go on


# --- at once ------------------------------------------------------------------------------------


def pca(features: np.ndarray, width: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the rows at unit length: scores [N width] and the share of variance [width] of each.

    The same as scikit-learn's full PCA; the sign of each component is the one that makes its largest loading
    positive, so that a map does not flip between two runs. Columns beyond the rank are zero.
    """
    x = unit(features).astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    vectors = vectors[:, :width]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    scores = np.zeros((len(x), width), np.float32)
    scores[:, : vectors.shape[1]] = x @ vectors
    shares = np.zeros(width)
    shares[: vectors.shape[1]] = values[:width] / max(float(values.sum()), 1e-30)
    return scores, shares


def clusters(features: np.ndarray, count: int) -> np.ndarray:
    """k-means on rows of unit length (cosine), int [N], the largest cluster first; fixed seed.

    Centres are found in at most FITTED rows, drawn at random, and all rows go to the nearest.
    """
    from sklearn.cluster import KMeans

    if not 2 <= count <= min(50, len(features)):
        raise UsageError(
            "number of clusters", got=count, expected=f"2 to {min(50, len(features))} for {len(features)} rows"
        )
    x = unit(features)
    chosen = numpy_generator(0, "clusters").permutation(len(x))[:FITTED]
    with threadpool_limits(1):
        found = KMeans(count, n_init=4, random_state=0).fit(x[chosen]).predict(x)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    return rank[found]


# --- in the background --------------------------------------------------------------------------


def missing(kind: str) -> str | None:
    """The message with the install command when a kind of map cannot be made, else None."""
    if kind not in KINDS:
        raise unknown("kind of map", kind, ("pca", *KINDS))
    module, extra = KINDS[kind]
    try:
        require(module, extra, f"a map by {kind}")
    except MissingDependency as error:
        return str(error)
    return None


def tsne(features: np.ndarray, report: Report) -> np.ndarray:
    """t-SNE [N 2] from the first 50 principal components, begun from the first two; fixed seed."""
    import openTSNE

    done = 0
    total = sum(ITERATIONS)

    def watch(iteration: int, divergence: float, _: np.ndarray) -> None:
        report((done + iteration) / total, f"step {done + iteration} of {total}, divergence {divergence:.3f}")

    x = pca(features, min(WIDTH, features.shape[1]))[0]
    perplexity = max(1.0, min(30.0, (len(x) - 1) / 3))
    report(0.0, "looking for neighbours")
    affinities = openTSNE.affinity.PerplexityBasedNN(x, perplexity=perplexity, metric="euclidean", random_state=0)
    start = openTSNE.initialization.rescale(x[:, :2].astype(np.float64))
    places = openTSNE.TSNEEmbedding(start, affinities, random_state=0, n_jobs=1)
    for steps, exaggeration, momentum in zip(ITERATIONS, (12.0, 1.0), (0.5, 0.8)):
        places = places.optimize(
            steps, exaggeration=exaggeration, momentum=momentum, callbacks=[watch], callbacks_every_iters=10
        )
        done += steps
    return np.asarray(places, dtype=np.float32)


class _Epochs:
    """A stream that umap-learn's progress bar writes to."""

    def __init__(self, report: Report):
        self.report = report

    def write(self, text: str) -> int:
        found = re.search(r"(\d+)/(\d+)", text)
        if found:
            self.report(int(found[1]) / int(found[2]), f"epoch {found[1]} of {found[2]}")
        return len(text)

    def flush(self) -> None:
        return


def umap(features: np.ndarray, report: Report) -> np.ndarray:
    """UMAP [N 2] from the first 50 principal components, 15 neighbours; fixed seed."""
    from umap import UMAP

    x = pca(features, min(WIDTH, features.shape[1]))[0]
    report(0.0, "looking for neighbours")
    model = UMAP(
        n_neighbors=max(2, min(15, len(x) - 1)),
        random_state=0,
        n_jobs=1,
        init="pca",
        verbose=True,
        tqdm_kwds={"file": _Epochs(report), "mininterval": 0.2},
    )
    return np.asarray(model.fit_transform(x), dtype=np.float32)


def _serve(kind: str, features: np.ndarray, pipe: Connection) -> None:
    """In the child: make the map, say how far it is, hand it over."""

    def report(share: float, text: str) -> None:
        pipe.send(("progress", share, text))

    try:
        with contextlib.redirect_stdout(None):  # umap-learn prints what it does
            places = {"tsne": tsne, "umap": umap}[kind](features, report)
        pipe.send(("done", places, ""))
    except Exception as error:  # whatever the libraries raise belongs to the one who asked
        pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))


@dataclass(frozen=True)
class State:
    """Where a job stands: "running", "done", "failed" or "cancelled"; share 0..1, text for people, seconds spent."""

    state: str
    share: float
    text: str
    seconds: float


class Job:
    """One map that is being made in a process of its own. Raises MissingDependency at the start, not later."""

    def __init__(self, kind: str, features: np.ndarray):
        if kind not in KINDS:
            raise unknown("kind of map", kind, ("pca", *KINDS))
        require(*KINDS[kind], f"a map by {kind}")
        if len(features) < 4:
            raise UsageError(f"a map by {kind} needs at least 4 rows", got=len(features))
        self.kind = kind
        self.places: np.ndarray | None = None
        self._began = time.monotonic()
        self._state = State("running", 0.0, "starting", 0.0)
        self._lock = threading.Lock()
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._pipe, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(kind, features, there), daemon=True)
        self._process.start()
        there.close()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                what, value, text = self._pipe.recv()
            except (EOFError, OSError):
                self._settle("failed", 0.0, "its process ended without a result")
                break
            if what == "progress":
                self._settle("running", float(value), text)
                continue
            if what == "done":
                self.places = value
            self._settle(what, 1.0 if what == "done" else 0.0, "done" if what == "done" else value)
            break
        self._process.join()

    def _settle(self, state: str, share: float, text: str) -> None:
        """What ended stays as it ended."""
        with self._lock:
            if self._state.state == "running":
                self._state = State(state, share, text, round(time.monotonic() - self._began, 1))

    def state(self) -> State:
        with self._lock:
            if self._state.state != "running":
                return self._state
            return replace(self._state, seconds=round(time.monotonic() - self._began, 1))

    def cancel(self) -> None:
        """End the process; a map that is done stays."""
        self._settle("cancelled", 0.0, "cancelled")
        if self._process.is_alive():
            self._process.terminate()

    def wait(self, seconds: float) -> State:
        """Until it has ended, or the time is over."""
        end = time.monotonic() + seconds
        while self._state.state == "running" and time.monotonic() < end:
            time.sleep(0.05)
        return self._state
