"""Time and memory of attention against the number of tokens: full, and every sparse pattern of saccade.

    python benchmarks/attention_cost.py [--sides 32,64,128,256] [--heads 3] [--width 64] [--rounds 3] [--json]
        [--smoke]

One layer of attention, forward and backward, float32, with a class token, on square grids; each pair of pattern and
size in a process of its own, in turn, round after round (A B A B). Full attention is measured up to 16,384 tokens.
Memory is the peak of the process less what it held before; time is that of the best round. The last line is one JSON
object: milliseconds of ``ours`` (windows of 7) and ``peer`` (full attention) at 4,096 tokens, their ``ratio``, and for
every pattern milliseconds and MiB at each size, slopes in log-log, and its own ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import harness

FULL_LIMIT = 128
PATTERNS = ("full", "window:7", "neighbourhood:7", "axial", "strided:8")


def measure(text: str, side: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the fastest of three steps, and MiB that they add to the peak of the process."""
    import torch

    from saccade import runtime
    from saccade.models.attention_patterns import parse_pattern
    from saccade.models.nn.attention import attend
    from saccade.models.nn.sparse_attention import attend_local, tables

    torch.set_num_threads(1)
    runtime.keep_freed_memory()
    pattern, count = parse_pattern(text), side * side + 1
    q, k, v = (torch.randn(1, options.heads, count, options.width, requires_grad=True) for _ in range(3))
    if pattern.kind != "full":
        tables(pattern, (side, side), 1, False, q.device)
    warm = torch.randn(1, options.heads, 65, options.width, requires_grad=True)
    attend(warm, warm, warm).sum().backward()
    before, seconds = harness.peak_mib(), []
    for _ in range(3):
        began = time.perf_counter()
        if pattern.kind == "full":
            out = attend(q, k, v, explicit=False)
        else:
            out = attend_local(q, k, v, pattern=pattern, grid=(side, side), prefix=1, layer=0)
        out.sum().backward()
        seconds.append(time.perf_counter() - began)
        del out
        q.grad = k.grad = v.grad = None
    return min(seconds), harness.peak_mib() - before


def slope(points: dict[int, tuple[float, float]], which: int) -> float | None:
    """Slope in log-log of the seconds (0) or MiB (1) against the number of tokens."""
    value = harness.loglog_slope({side**2: (1e6, 1)[which] * pair[which] for side, pair in points.items()})
    return value and round(value, 3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="32,64,128,256")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = harness.parse(parser, {"sides": "8,16", "heads": 1, "width": 8, "rounds": 1}, argv)
    sides = [int(word) for word in options.sides.split(",")]
    best: dict[str, dict[int, tuple[float, float]]] = {text: {} for text in PATTERNS}
    for _ in range(options.rounds):
        for side in sides:
            for text in PATTERNS:
                if text == "full" and side > FULL_LIMIT:
                    continue
                seconds, mib = harness.run_in_child(measure, text, side, options)
                old = best[text].get(side, (math.inf, math.inf))
                best[text][side] = (min(old[0], seconds), min(old[1], mib))
    compared = 64 if 64 in sides else max(side for side in sides if side <= FULL_LIMIT)
    full_ms = 1e3 * best["full"][compared][0]
    patterns = {}
    for text, points in best.items():
        patterns[text] = {
            "ms": {side**2: round(1e3 * points[side][0], 1) for side in sides if side in points},
            "mib": {side**2: round(points[side][1], 1) for side in sides if side in points},
            "slope_time": slope(points, 0),
            "slope_memory": slope(points, 1),
            "ratio": round(full_ms / (1e3 * points[compared][0]), 2),
        }
    window_ms = 1e3 * best["window:7"][compared][0]
    result: dict[str, Any] = {
        "ours": round(window_ms, 2),
        "peer": round(full_ms, 2),
        "ratio": round(full_ms / window_ms, 2),
    }
    result |= {"tokens": compared**2, "patterns": patterns, "heads": options.heads, "width": options.width}
    harness.finish(options, result | {"threads": 1}, [f"{text:16s} {json.dumps(p)}" for text, p in patterns.items()])


if __name__ == "__main__":
    main()
