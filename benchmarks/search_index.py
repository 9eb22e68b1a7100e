"""What an index gains and loses: one query at a time, exact in memory, exact in LanceDB, and by its index.

    python benchmarks/search_index.py [--rows 100000] [--width 384] [--clusters 1000] [--queries 100] [--k 10]
                                      [--rounds 3] [--json] [--smoke]

Vectors of length 1 around random centres, as the features of a trained model lie. All answers to the same queries are
compared with the exact ones; the four ways take turns. `peer` is faiss' flat index where faiss is installed, else
scikit-learn's brute force. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import harness
from saccade.features import stores
from saccade.features.filters import parse
from saccade.features.table import FeatureTable, MemoryStore, Store, l2_normalize

SMOKE = {"rows": 2000, "width": 16, "clusters": 20, "queries": 3, "rounds": 1}
Ask = Callable[[np.ndarray], list[str]]


def clustered(options: argparse.Namespace) -> tuple[FeatureTable, np.ndarray]:
    """The table and queries from the same clusters; every tenth row is of the class that the filter asks for."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((options.clusters, options.width), np.float32)
    count = options.rows + options.queries
    cluster_of = generator.integers(0, options.clusters, count)
    vectors = l2_normalize(centres[cluster_of] + generator.standard_normal((count, options.width), np.float32))
    rows = range(options.rows)
    nothing: list[str | None] = [None] * options.rows
    labels: list[str | None] = [f"class {c % 10}" for c in cluster_of[: options.rows]]
    table = FeatureTable(vectors[: options.rows], [str(i) for i in rows], labels, nothing, nothing, nothing, "random")
    return table, vectors[options.rows :]


def peer(table: FeatureTable, k: int) -> tuple[str, Ask]:
    try:
        import faiss
    except ImportError:
        from sklearn.neighbors import NearestNeighbors

        model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(table.features)
        return "scikit-learn", lambda q: [str(i) for i in model.kneighbors(q[None], return_distance=False)[0]]
    index = faiss.IndexFlatIP(table.features.shape[1])
    index.add(table.features)
    return "faiss", lambda q: [str(i) for i in index.search(q[None], k)[1][0]]


def asking(store: Store, k: int, *, approximate: bool) -> Ask:
    return lambda q: [str(hit["id"]) for hit in store.nearest_rows(q, k, approximate=approximate).hits]


def timed(ways: dict[str, Ask], queries: np.ndarray, rounds: int) -> tuple[dict[str, float], dict[str, list[set[str]]]]:
    """Median milliseconds a query of every way, which take turns, and their answers."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[set[str]]] = {}
    for _ in range(rounds):
        for name, ask in ways.items():
            results = []
            for query in queries:
                began = time.perf_counter()
                results.append(set(ask(query)))
                seconds[name].append(time.perf_counter() - began)
            answers[name] = results
    return {name: round(1000 * statistics.median(taken), 2) for name, taken in seconds.items()}, answers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in (
        ("rows", 100_000),
        ("width", 384),
        ("clusters", 1000),
        ("queries", 100),
        ("k", 10),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = harness.parse(parser, SMOKE, argv)
    table, queries = clustered(options)
    peer_name, theirs = peer(table, options.k)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db" / "features.lance"
        began = time.perf_counter()
        stores.write(path, table)
        written = time.perf_counter() - began
        lance = stores.open_store(path)
        memory = MemoryStore("memory", table)
        ways = {
            "exact": asking(memory, options.k, approximate=False),
            peer_name: theirs,
            "lance exact": asking(lance, options.k, approximate=False),
            "lance index": asking(lance, options.k, approximate=True),
        }
        took, answers = timed(ways, queries, options.rounds)
        recall = {
            n: float(np.mean([len(a & b) / len(b) for a, b in zip(results, answers["exact"])]))
            for n, results in answers.items()
        }
        unfiltered = lance.nearest_rows(queries[0], options.k, approximate=True).recall
        filtered = lance.nearest_rows(queries[0], options.k, parse("label='class 3'"), approximate=True).recall
    assert unfiltered is not None and filtered is not None
    lines = [f"{n:14s} {ms:8.2f} ms a query, recall@{options.k} {recall[n]:.4f}" for n, ms in took.items()]
    lines += [
        f"written with its index in {written:.1f} s; reported: {unfiltered.text()}, {unfiltered.cells} cells",
        f"under a filter: {filtered.text()}, {filtered.cells} cells",
    ]
    ours, theirs_ms = took["lance index"], took[peer_name]
    result = {"ours": ours, "peer": theirs_ms, "ratio": round(theirs_ms / ours, 2), "peer_name": peer_name, "ms": took}
    more = {"recall": recall, "reported": vars(unfiltered), "filtered": vars(filtered)}
    harness.finish(options, result | more | {"rows": options.rows, "write_seconds": round(written, 1)}, lines)


if __name__ == "__main__":
    main()
