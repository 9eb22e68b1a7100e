"""Two-dimensional embeddings of a feature table, and clusters.

PCA is exact and immediate. t-SNE (van der Maaten and Hinton 2008, by openTSNE) and UMAP (McInnes et al. 2018,
by umap-learn) preserve neighbourhoods; distances between far points have no meaning. They take minutes, so
``begin`` runs them in a separate process, which reports progress and can be stopped.
"""

from __future__ import annotations

import contextlib
import re

import numpy as np
from threadpoolctl import threadpool_limits

from saccade.base.jobs import Job, Report
from saccade.base.random import numpy_generator
from saccade.errors import MissingDependency, UsageError, require, unknown
from saccade.features.table import l2_normalize

KINDS = {"tsne": ("openTSNE", "map"), "umap": ("umap", "umap")}  # module, extra
WIDTH = 50  # principal components that t-SNE and UMAP start from
FITTED = 20_000  # rows that k-means is fitted on
ITERATIONS = (250, 500)  # of t-SNE: with exaggeration, without


# --- at once ------------------------------------------------------------------------------------


def pca(features: np.ndarray, width: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the rows at unit length: scores [N width] and explained variance ratio [width].

    Equals scikit-learn's full PCA; the largest loading of each component is positive, so that a map does not flip
    between two runs. Columns beyond the rank are zero.
    """
    x = l2_normalize(features).astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    vectors = vectors[:, :width]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    scores = np.zeros((len(x), width), np.float32)
    scores[:, : vectors.shape[1]] = x @ vectors
    explained = np.zeros(width)
    explained[: vectors.shape[1]] = values[:width] / max(float(values.sum()), 1e-30)
    return scores, explained


def clusters(features: np.ndarray, count: int) -> np.ndarray:
    """k-means on rows of unit length (cosine), int [N], the largest cluster first; fixed seed.

    Centres are fitted on at most FITTED random rows; every row is assigned to the nearest.
    """
    from sklearn.cluster import KMeans

    if not 2 <= count <= min(50, len(features)):
        raise UsageError(
            "the number of clusters is out of range",
            got=count,
            expected=f"2 to {min(50, len(features))} for {len(features)} rows",
        )
    x = l2_normalize(features)
    chosen = numpy_generator(0, "clusters").permutation(len(x))[:FITTED]
    with threadpool_limits(1):
        labels = KMeans(count, n_init=4, random_state=0).fit(x[chosen]).predict(x)
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    return rank[labels]


# --- in the background --------------------------------------------------------------------------


def missing(kind: str) -> str | None:
    """The message with the install command when a package of a kind of map is missing, else None."""
    if kind not in KINDS:
        raise unknown("kind of map", kind, ("pca", *KINDS))
    module, extra = KINDS[kind]
    try:
        require(module, extra, f"a map by {kind}")
    except MissingDependency as error:
        return str(error)
    return None


def tsne(features: np.ndarray, report: Report) -> np.ndarray:
    """t-SNE [N 2] from the first 50 principal components, initialized with the first two; fixed seed."""
    import openTSNE

    done = 0
    total = sum(ITERATIONS)

    def watch(iteration: int, divergence: float, _: np.ndarray) -> None:
        report((done + iteration) / total, f"step {done + iteration} of {total}, divergence {divergence:.3f}")

    x = pca(features, min(WIDTH, features.shape[1]))[0]
    perplexity = max(1.0, min(30.0, (len(x) - 1) / 3))
    report(0.0, "searching neighbours")
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
        match = re.search(r"(\d+)/(\d+)", text)
        if match:
            self.report(int(match[1]) / int(match[2]), f"epoch {match[1]} of {match[2]}")
        return len(text)

    def flush(self) -> None:
        return


def umap(features: np.ndarray, report: Report) -> np.ndarray:
    """UMAP [N 2] from the first 50 principal components, 15 neighbours; fixed seed."""
    from umap import UMAP

    x = pca(features, min(WIDTH, features.shape[1]))[0]
    report(0.0, "searching neighbours")
    model = UMAP(
        n_neighbors=max(2, min(15, len(x) - 1)),
        random_state=0,
        n_jobs=1,
        init="pca",
        verbose=True,
        tqdm_kwds={"file": _Epochs(report), "mininterval": 0.2},
    )
    return np.asarray(model.fit_transform(x), dtype=np.float32)


def _make(report: Report, kind: str, features: np.ndarray) -> np.ndarray:
    """Runs in a separate process. umap-learn prints to stdout."""
    with contextlib.redirect_stdout(None):
        return {"tsne": tsne, "umap": umap}[kind](features, report)


def begin(kind: str, features: np.ndarray) -> Job:
    """Start a map in a separate process; its result is [N 2]. Raises MissingDependency and UsageError at once."""
    if kind not in KINDS:
        raise unknown("kind of map", kind, ("pca", *KINDS))
    require(*KINDS[kind], f"a map by {kind}")
    if len(features) < 4:
        raise UsageError(f"a map by {kind} needs at least 4 rows", got=len(features))
    return Job(_make, kind, features)
