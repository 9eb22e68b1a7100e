"""Time and memory of attention against the number of tokens: full, and every sparse pattern of saccade.

    python benchmarks/attention_cost.py [--sides 32,64,128,256] [--heads 3] [--width 64] [--rounds 3] [--json]

One layer of attention, forward and backward, float32, with a class token, on square grids; each pair of pattern and
size in a process of its own, in turn, round after round (A B A B). Full attention is measured up to 16,384 tokens.
Memory is the peak of the process less what it held before; time is that of the best round. The last line is one JSON
object: for every pattern milliseconds and MiB at each size, their slopes in log-log, and ``ratio``: full attention's
time over the pattern's at 4,096 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import time

FULL_LIMIT = 128
PATTERNS = ("full", "window:7", "neighbourhood:7", "axial", "strided:8")


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(text: str, side: int, options: argparse.Namespace, replies: multiprocessing.Queue) -> None:
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
    before, seconds = peak_mib(), []
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
    replies.put((min(seconds), peak_mib() - before))


def in_process(text: str, side: int, options: argparse.Namespace) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    replies: multiprocessing.Queue = context.Queue()
    process = context.Process(target=measure, args=(text, side, options, replies))
    process.start()
    found = replies.get()
    process.join()
    return found


def slope(sides: list[int], values: list[float]) -> float:
    """Least squares in log-log, against the number of tokens."""
    x, y = [math.log(side**2) for side in sides], [math.log(value) for value in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="32,64,128,256")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sides = [int(word) for word in options.sides.split(",")]
    best: dict[str, dict[int, tuple[float, float]]] = {text: {} for text in PATTERNS}
    for _ in range(options.rounds):
        for side in sides:
            for text in PATTERNS:
                if text == "full" and side > FULL_LIMIT:
                    continue
                seconds, mib = in_process(text, side, options)
                old = best[text].get(side, (math.inf, math.inf))
                best[text][side] = (min(old[0], seconds), min(old[1], mib))
    found = {}
    for text, at in best.items():
        own = sorted(at)
        found[text] = {
            "ms": {side**2: round(1e3 * at[side][0], 1) for side in own},
            "mib": {side**2: round(at[side][1], 1) for side in own},
            "slope_time": round(slope(own, [at[side][0] for side in own]), 3),
            "slope_memory": round(slope(own, [max(at[side][1], 0.1) for side in own]), 3),
        }
        if 64 in at:
            found[text]["ratio"] = round(best["full"][64][0] / at[64][0], 2)
        if not options.json:
            print(f"{text:16s}", json.dumps(found[text]))
    print(json.dumps({"patterns": found, "heads": options.heads, "width": options.width, "threads": 1}))


if __name__ == "__main__":
    main()
