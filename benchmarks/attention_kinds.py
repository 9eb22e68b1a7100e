"""Time and memory of whole encoders against the number of tokens, images and volumes, for every kind of attention.

    python benchmarks/attention_kinds.py [--arithmetic] [--seconds 60] [--threads 1] [--figure FILE.svg] [--json]

Two encoder layers of width 96 with 3 heads on one grey image (patches of 4) or volume (patches of 4 along each axis),
float32, forward and backward; where that would take more than ``--seconds`` by the slope so far, forward alone
(marked). Beside them MONAI's ViT with the same sizes, and the encoder of its SwinUNETR (patches of 2, width 24, eight
layers in four stages, windows of 7), which is another network: compare slopes, not heights. Each point has a process of
its own; memory is the peak of that process less what it held before. Kinds are measured in turn at each size.
``--arithmetic`` measures nothing: operations and memory as saccade plan counts them (MONAI's networks are not in it).
The last line is one JSON object: milliseconds and MiB at every number of tokens, slopes in log-log from 1,024 on.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

SIDES = {2: (16, 32, 64, 128, 256), 3: (8, 16, 32, 64)}
KINDS = {
    "full, fused": {"attention": "full"},
    "full, written out": {"attention": "full"},
    "window": {2: "window:8", 3: "window:4"},
    "axial": {2: "axial", 3: "axial"},
    "neighbourhood": {2: "neighbourhood:7", 3: "neighbourhood:5"},
    "strided": {2: "strided:8", 3: "strided:4"},
    "pooling (HVT)": {},
    "hybrid stem": {},
    "MONAI ViT": {},
    "MONAI SwinUNETR encoder": {},
}
WRITTEN_OUT = ("full, written out", "MONAI ViT")
MEMORY = 6 * 2**30  # no matrix beyond this is tried
DIM, HEADS, DEPTH, PATCH = 96, 3, 2, 4


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def make(kind: str, axes: int, side: int) -> tuple[Any, Any]:
    """A network, and an image with ``side`` tokens along each axis."""
    import torch

    from saccade.models.backbones.hvt import HVTSettings
    from saccade.models.backbones.vit import ViTSettings
    from saccade.models.nn.hvt import HVT
    from saccade.models.nn.vit import ViT

    size = side * PATCH
    common = {"patch": PATCH, "channels": 1, "size_px": size, "axes": axes}
    pixels = torch.randn(1, 1, *(size,) * axes)
    if kind == "pooling (HVT)":
        return HVT(HVTSettings("hvt", DIM, DEPTH, HEADS, (1,), **common)), pixels
    if kind == "hybrid stem":  # the stem halves twice more: a quarter of the tokens along each axis
        more = common | {"patch": 4 * PATCH}
        return ViT(ViTSettings("hybrid", DIM, DEPTH, HEADS, stem="stages", **more)), pixels
    if kind == "MONAI ViT":
        from monai.networks.nets import ViT as Peer

        sizes = {"hidden_size": DIM, "mlp_dim": 4 * DIM, "num_layers": DEPTH, "num_heads": HEADS, "spatial_dims": axes}
        return Peer(1, (size,) * axes, (PATCH,) * axes, **sizes), pixels
    if kind == "MONAI SwinUNETR encoder":
        from monai.networks.nets.swin_unetr import SwinTransformer

        pixels = torch.randn(1, 1, *(2 * side,) * axes)
        return SwinTransformer(1, 24, (7,) * axes, (2,) * axes, (2, 2, 2, 2), (3, 6, 12, 24), spatial_dims=axes), pixels
    attention = KINDS[kind].get(axes, "full")  # type: ignore[call-overload]
    return ViT(ViTSettings("vit", DIM, DEPTH, HEADS, attention=attention, **common)), pixels


def measure(kind: str, axes: int, side: int, backward: bool, threads: int, replies: Any) -> None:
    import torch

    from saccade.models.nn import attention

    torch.set_num_threads(threads)
    ctypes.CDLL(None).mallopt(-3, 2**20)  # large tensors are mapped one by one: the peak is theirs, without gaps
    if kind == "full, written out":
        attention._explicit_is_faster = lambda query, key: True
    if kind == "full, fused":
        attention._explicit_is_faster = lambda query, key: False
    network, pixels = make(kind, axes, side)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            found = network(pixels)
            found = found.cls if hasattr(found, "cls") else found[0]
            found = found[-1] if isinstance(found, list) else found
            if backward:
                found.float().square().mean().backward()

    before, seconds = peak_mib(), []
    while len(seconds) < 3 and sum(seconds) < 8:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
        network.zero_grad(set_to_none=True)
    replies.put((min(seconds), peak_mib() - before))


def in_process(*given: Any) -> tuple[float, float] | None:
    context = multiprocessing.get_context("fork")
    replies: Any = context.Queue()
    process = context.Process(target=measure, args=(*given, replies))
    process.start()
    while process.is_alive() and replies.empty():
        process.join(0.05)
    found = replies.get() if not replies.empty() else None
    process.join()
    return found


def slope(points: dict[int, float]) -> float | None:
    """Least squares in log-log against the number of tokens, from 1,024 of them on."""
    found = [(math.log(n), math.log(max(v, 0.1))) for n, v in points.items() if n >= 1024]
    if len(found) < 2:
        return None
    mx, my = (sum(axis) / len(found) for axis in zip(*found))
    return round(sum((x - mx) * (y - my) for x, y in found) / sum((x - mx) ** 2 for x, _ in found), 2)


def survey(axes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every kind at every size, smallest first, until a point would take too long or too much."""
    found: dict[str, Any] = {kind: {"train": {}, "forward": {}} for kind in KINDS}
    for side in SIDES[axes]:
        tokens = side**axes
        for kind, points in found.items():
            matrices = 4 * HEADS * tokens**2 * 3
            if kind in WRITTEN_OUT and matrices > MEMORY:
                continue
            for mode, backward in (("train", True), ("forward", False)):
                known = points[mode]
                power = 2.0 if "full" in kind or "MONAI ViT" in kind else 1.35
                if known and known[max(known)][0] * (tokens / max(known)) ** power > options.seconds:
                    continue
                if mode == "forward" and tokens in points["train"] and tokens < 16384:
                    continue
                measured = in_process(kind, axes, side, backward, options.threads)
                if measured is not None:
                    known[tokens] = measured
                    if not options.json:
                        ms, mib = 1e3 * measured[0], measured[1]
                        print(f"{axes}D {kind:24s} {tokens:7,d} {mode:7s} {ms:10.1f} ms {mib:9.1f} MiB", flush=True)
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, modes in found.items():
        out[kind] = {}
        for mode, points in modes.items():
            ms, mib = ({n: round(f * v[i], 1) for n, v in points.items()} for i, f in ((0, 1e3), (1, 1)))
            out[kind][mode] = {"ms": ms, "mib": mib, "slope_time": slope(ms), "slope_memory": slope(mib)}
    return out


def settings(kind: str, axes: int, side: int) -> Any:
    """What ``make`` builds, as settings; None for MONAI's networks."""
    from saccade.models.backbones.hvt import HVTSettings
    from saccade.models.backbones.vit import ViTSettings

    common = {"patch": PATCH, "channels": 1, "size_px": side * PATCH, "axes": axes}
    if kind.startswith("MONAI"):
        return None
    if kind == "pooling (HVT)":
        return HVTSettings("hvt", DIM, DEPTH, HEADS, (1,), **common)
    if kind == "hybrid stem":
        return ViTSettings("hybrid", DIM, DEPTH, HEADS, stem="stages", **(common | {"patch": 4 * PATCH}))
    attention = KINDS[kind].get(axes, "full")  # type: ignore[call-overload]
    return ViTSettings("vit", DIM, DEPTH, HEADS, attention=attention, **common)


def counted(axes: int) -> dict[str, Any]:
    """Operations and memory of a training step by arithmetic; without the heap's gaps, as the measurement is."""
    from saccade.cost.step_memory import GAPS, Workload, price

    out: dict[str, Any] = {}
    for kind in KINDS:
        points: dict[str, dict[int, float]] = {"gflop": {}, "mib": {}}
        for side in SIDES[axes]:
            network = settings(kind, axes, side)
            if network is None:
                continue
            config = {"classes": ("a", "b"), "frozen": False}
            explicit = {"full, fused": False, "full, written out": True}.get(kind)
            load = Workload(network, "supervised", config, (1, side * PATCH), (0, 0), 1, explicit=explicit, axes=axes)
            found = price(load)
            points["gflop"][side**axes] = round(found.total_flops / 1e9, 2)
            points["mib"][side**axes] = round((found.peak - found.memory.get(GAPS, 0)) / 2**20, 1)
        if points["mib"]:
            slopes = {"slope_work": slope(points["gflop"]), "slope_memory": slope(points["mib"])}
            out[kind] = {"train": points | slopes}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    options = parser.parse_args()
    if options.arithmetic:
        table = {f"{axes}D": counted(axes) for axes in SIDES}
        if options.figure:
            from attention_figure import draw

            draw(table, options.figure, work="gflop")
        print(json.dumps(table))
        return
    import monai.networks.nets  # before the processes part, so that none loads it again  # noqa: F401
    import torch  # noqa: F401

    from saccade.models.nn import hvt, vit  # noqa: F401

    found = {f"{axes}D": summary(survey(axes, options)) for axes in SIDES}
    if options.figure:
        from attention_figure import draw

        draw(found, options.figure)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
