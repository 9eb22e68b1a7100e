"""What built-in equivariance costs, and how far representations move when the image is turned.

    python benchmarks/equivariance.py [--batch 32] [--size 64] [--width 64] [--threads 1] [--rounds 5] [--model RUN ...]
        [--escnn] [--json] [--smoke]

Time: forward and backward of resnet18_c4, _d4 and _c8 beside the plain resnet18 with the same feature maps (as many
channels over all orientations), A B A B in one process, bf16 and float32. With --escnn also one group
convolution of escnn (Weiler and Cesa 2019), where that package runs. Drift: the mean distance by which the image
vector moves when a tissue tile is turned, over the mean distance between two tiles, every 15 degrees; random weights
after a few batches of statistics, and any models that are named. The last line is one JSON object: milliseconds
of the group with the largest ``ratio`` (``ours``) and of the plain network (``peer``), and everything else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

import harness
from saccade import runtime
from saccade.augment.views import plain_view
from saccade.data.cache.image_cache import build_cache, input_spec
from saccade.data.open import open_source
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import load_model
from saccade.models.nn.group_conv import GroupConv
from saccade.study.conditions import ANGLES, drift

SMOKE = {"batch": 2, "size": 32, "width": 8, "rounds": 1}
NETWORKS = ("resnet18", "resnet18_c4", "resnet18_d4", "resnet18_c8", "vit_tiny_patch8")


def turns(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turn, round after round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(1e3 * median(values[1:]), 1) for name, values in seconds.items()}


def step(network: torch.nn.Module, x: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = network(x).cls.float().square().mean()
    loss.backward()


def image_vectors(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    vectors: torch.Tensor = network(x).cls
    return vectors


def prices(options: argparse.Namespace) -> dict[str, Any]:
    x = torch.randn(options.batch, 3, options.size, options.size)
    times: dict[str, Any] = {}
    for group in ("c4", "d4", "c8"):
        names = {"ours": f"resnet18_{group}_w{options.width}", "plain": f"resnet18_w{options.width}"}
        pair = {key: build(name, size_px=options.size) for key, name in names.items()}
        for bf16 in (True, False):
            works: dict[str, Callable[[], None]] = {n: partial(step, net, x, bf16) for n, net in pair.items()}
            ms = turns(works, options.rounds)
            times[f"{group} {'bf16' if bf16 else 'fp32'}"] = ms | {"ratio": round(ms["ours"] / ms["plain"], 3)}
    return times


def beside_escnn(options: argparse.Namespace) -> dict[str, Any]:
    """One 3x3 group convolution over c4, 32 fields, 32 x 32 positions, float32."""
    import escnn

    space = escnn.gspaces.rot2dOnR2(4)
    fields = escnn.nn.FieldType(space, [space.regular_repr] * 32)
    theirs = escnn.nn.R2Conv(fields, fields, 3, padding=1, bias=False).train()
    ours, x = GroupConv("c4", 32, 32, 3), torch.randn(options.batch, 128, 32, 32)
    last = x.contiguous(memory_format=torch.channels_last)
    works = {
        "ours": lambda: ours(last).square().mean().backward(),
        "escnn": lambda: theirs(escnn.nn.GeometricTensor(x, fields)).tensor.square().mean().backward(),
    }
    ms = turns(works, options.rounds)
    return ms | {"ratio": round(ms["escnn"] / ms["ours"], 2)}


def drifts(options: argparse.Namespace) -> dict[str, list[float]]:
    count = 64 if options.smoke else 512
    cache = build_cache(open_source(f"synthetic:tissue?n={count}&size={options.size}"), cache_px=options.size)
    spec = input_spec(cache, options.size, grey=False)
    distances = {}
    for name in NETWORKS:
        network = build(name, size_px=options.size).train()
        with torch.no_grad():
            for start in range(0, count // 2, 64):
                network(plain_view(cache.batch(np.arange(start, min(start + 64, count))), spec))
        network.eval()
        distances[name] = drift(partial(image_vectors, network), cache, spec, torch.device("cpu"))
    for run in options.model:
        loaded = load_model(run)
        tissue = open_source(f"synthetic:tissue?n={count}&size={options.size}")
        model_cache = build_cache(tissue, cache_px=loaded.spec.size_px)
        distances[run] = drift(partial(image_vectors, loaded.backbone), model_cache, loaded.spec, torch.device("cpu"))
    return {name: [round(v, 4) for v in values] for name, values in distances.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--escnn", action="store_true")
    options = harness.parse(parser, SMOKE, argv)
    torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    times, distances = prices(options), drifts(options)
    worst = max(times.values(), key=lambda ms: ms["ratio"])
    result: dict[str, Any] = {"ours": worst["ours"], "peer": worst["plain"], "ratio": worst["ratio"]}
    result |= {"time": times, "angles": list(ANGLES), "drift": distances}
    if options.escnn:
        result["layer"] = beside_escnn(options)
    lines = [f"{name}: {ms['ours']} ms, plain {ms['plain']} ms, ratio {ms['ratio']}" for name, ms in times.items()]
    for name, values in distances.items():
        lines.append(f"{name:18s} drift at 45, 90 degrees: {values[3]:.3f}, {values[6]:.6f}")
    harness.finish(options, result, lines)


if __name__ == "__main__":
    main()
