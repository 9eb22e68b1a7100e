"""Exact k-NN by cosine among a million features: saccade beside faiss' flat index. Needs the extra bench.

    python benchmarks/search.py [--rows 1000000] [--queries 10000] [--width 384] [--k 20] [--rounds 1] [--json]
        [--smoke]

Random features of length 1. Both answers are compared before the times are taken. The last line is one JSON
object: queries a second of ``ours`` and ``peer``, their ``ratio``, and the fraction of neighbours that agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np

import harness
from harness import Work
from saccade.features.table import l2_normalize, nearest


def features(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (options.rows, options.width)
    rows = l2_normalize(generator.standard_normal(shape, np.float32))
    return rows, l2_normalize(generator.standard_normal((options.queries, options.width), np.float32))


def set_up_ours(options: argparse.Namespace) -> Work:
    rows, queries = features(options)

    def work() -> int:
        nearest(rows, queries, options.k)
        return len(queries)

    return work


def set_up_peer(options: argparse.Namespace) -> Work:
    import faiss

    rows, queries = features(options)
    index = faiss.IndexFlatIP(options.width)
    index.add(rows)

    def work() -> int:
        index.search(queries, options.k)
        return len(queries)

    return work


def agreement(options: argparse.Namespace) -> float:
    """Fraction of the neighbours of 200 queries that both return."""
    import faiss

    rows, queries = features(options)
    index = faiss.IndexFlatIP(options.width)
    index.add(rows)
    theirs = index.search(queries[:200], options.k)[1]
    ours = nearest(rows, queries[:200], options.k)[1]
    return float(np.mean([len(set(a) & set(b)) / options.k for a, b in zip(ours.tolist(), theirs.tolist())]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    options = harness.parse(parser, {"rows": 1000, "queries": 200, "width": 16, "k": 5}, argv)
    agree = agreement(options)
    mine, theirs = harness.abab(partial(set_up_ours, options), partial(set_up_peer, options), options.rounds, warm_up=0)
    text = f"saccade {mine:.0f} queries/s, faiss {theirs:.0f}: {theirs / mine:.2f} of its time; {agree:.4f} agree"
    result = {"ours": round(mine, 1), "peer": round(theirs, 1), "ratio": round(mine / theirs, 3)}
    more = {"time_ratio": round(theirs / mine, 3), "agreement": agree, "rows": options.rows}
    harness.finish(options, result | more, [text])


if __name__ == "__main__":
    main()
