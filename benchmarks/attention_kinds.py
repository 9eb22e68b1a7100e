"""Time and memory of whole encoders against the number of tokens, images and volumes, for every kind of attention.

    python benchmarks/attention_kinds.py [--arithmetic] [--seconds 60] [--threads 1] [--figure FILE.svg] [--json]
        [--smoke]

Two encoder layers of width 96 with 3 heads on one grey image (patches of 4) or volume (patches of 4 along each axis),
float32, forward and backward; where that would take more than ``--seconds`` by the slope so far, forward alone
(marked). Beside them MONAI's ViT with the same sizes, and the encoder of its SwinUNETR (patches of 2, width 24, eight
layers in four stages, windows of 7), which is another network: compare slopes, not heights. Each point has a process of
its own; memory is the peak of that process less what it held before. Kinds are measured in turn at each size.
``--arithmetic`` measures nothing: operations and memory as saccade plan counts them (MONAI's networks are not in it).
The last line is one JSON object: milliseconds of a training step of ``ours`` (axial) and ``peer`` (full) on the largest
image that both reach, their ``ratio``, and milliseconds, MiB and slopes in log-log (from 1,024 tokens on) of all kinds.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

SIDES = {2: (16, 32, 64, 128, 256), 3: (8, 16, 32, 64)}
SMOKE_SIDES = {2: (8, 16), 3: (8,)}
KINDS: dict[str, dict[Any, str]] = {
    "full, fused": {},
    "full, written out": {},
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


def make(kind: str, axes: int, side: int) -> tuple[Any, Any]:
    """A network, and an image with ``side`` tokens along each axis."""
    import torch

    from saccade.models.backbones.hvt import HVTSettings
    from saccade.models.backbones.vit import ViTSettings
    from saccade.models.nn.hvt import HVT
    from saccade.models.nn.vit import ViT

    size = side * PATCH
    common: dict[str, Any] = {"patch": PATCH, "channels": 1, "size_px": size, "axes": axes}
    pixels = torch.randn(1, 1, *(size,) * axes)
    if kind == "pooling (HVT)":
        return HVT(HVTSettings("hvt_micro_patch4", DIM, DEPTH, HEADS, (1,), **common)), pixels
    if kind == "hybrid stem":  # the stem halves twice more: a quarter of the tokens along each axis
        more = common | {"patch": 4 * PATCH}
        return ViT(ViTSettings("hybrid_micro_patch16", DIM, DEPTH, HEADS, stem="stages", **more)), pixels
    if kind == "MONAI ViT":
        from monai.networks.nets import ViT as Peer

        sizes: dict[str, Any] = {
            "hidden_size": DIM,
            "mlp_dim": 4 * DIM,
            "num_layers": DEPTH,
            "num_heads": HEADS,
            "spatial_dims": axes,
        }
        return Peer(1, (size,) * axes, (PATCH,) * axes, **sizes), pixels
    if kind == "MONAI SwinUNETR encoder":
        from monai.networks.nets.swin_unetr import SwinTransformer

        pixels = torch.randn(1, 1, *(2 * side,) * axes)
        return SwinTransformer(1, 24, (7,) * axes, (2,) * axes, (2, 2, 2, 2), (3, 6, 12, 24), spatial_dims=axes), pixels
    attention = KINDS[kind].get(axes, "full")
    return ViT(ViTSettings("vit_micro_patch4", DIM, DEPTH, HEADS, attention=attention, **common)), pixels


def measure(kind: str, axes: int, side: int, backward: bool, threads: int) -> tuple[float, float]:
    """Seconds of the fastest pass, and MiB that it adds to the peak of the process."""
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
            output = network(pixels)
            output = output[0] if kind.startswith("MONAI") else output.cls
            output = output[-1] if isinstance(output, list) else output
            if backward:
                output.float().square().mean().backward()

    before = harness.peak_mib()
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 8:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
        network.zero_grad(set_to_none=True)
    return min(seconds), harness.peak_mib() - before


def slope(points: dict[int, float]) -> float | None:
    """Slope in log-log against the number of tokens, from 1,024 of them on."""
    value = harness.loglog_slope({tokens: v for tokens, v in points.items() if tokens >= 1024})
    return value and round(value, 2)


def survey(axes: int, sides: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Every kind at every size, smallest first, until a point would take too long or too much memory."""
    measured: dict[str, Any] = {kind: {"train": {}, "forward": {}} for kind in KINDS}
    for side in sides:
        tokens = side**axes
        for kind, modes in measured.items():
            matrices = 4 * HEADS * tokens**2 * 3
            if kind in WRITTEN_OUT and matrices > MEMORY:
                continue
            for mode, backward in (("train", True), ("forward", False)):
                points = modes[mode]
                power = 2.0 if "full" in kind or "MONAI ViT" in kind else 1.35
                if points and points[max(points)][0] * (tokens / max(points)) ** power > options.seconds:
                    continue
                if mode == "forward" and tokens in modes["train"] and tokens < 16384:
                    continue
                seconds, mib = harness.run_in_child(measure, kind, axes, side, backward, options.threads)
                points[tokens] = (seconds, mib)
                if not options.json:
                    text = f"{axes}D {kind:24s} {tokens:7,d} {mode:7s} {1e3 * seconds:10.1f} ms {mib:9.1f} MiB"
                    print(text, flush=True)
    return measured


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, modes in measured.items():
        out[kind] = {}
        for mode, points in modes.items():
            ms, mib = ({n: round(f * v[i], 1) for n, v in points.items()} for i, f in ((0, 1e3), (1, 1)))
            out[kind][mode] = {"ms": ms, "mib": mib, "slope_time": slope(ms), "slope_memory": slope(mib)}
    return out


def settings(kind: str, axes: int, side: int) -> Any:
    """What ``make`` builds, as settings; None for MONAI's networks."""
    from saccade.models.backbones.hvt import HVTSettings
    from saccade.models.backbones.vit import ViTSettings

    common: dict[str, Any] = {"patch": PATCH, "channels": 1, "size_px": side * PATCH, "axes": axes}
    if kind.startswith("MONAI"):
        return None
    if kind == "pooling (HVT)":
        return HVTSettings("hvt_micro_patch4", DIM, DEPTH, HEADS, (1,), **common)
    if kind == "hybrid stem":
        return ViTSettings("hybrid_micro_patch16", DIM, DEPTH, HEADS, stem="stages", **(common | {"patch": 4 * PATCH}))
    attention = KINDS[kind].get(axes, "full")
    return ViTSettings("vit_micro_patch4", DIM, DEPTH, HEADS, attention=attention, **common)


def counted(axes: int, sides: Sequence[int]) -> dict[str, Any]:
    """Operations and memory of a traced training step; without fragmentation, as in the measurement."""
    from saccade.cost.step import FRAGMENTATION, Workload, price
    from saccade.methods.supervised import SupervisedConfig

    out: dict[str, Any] = {}
    for kind in KINDS:
        points: dict[str, dict[int, float]] = {"gflop": {}, "mib": {}}
        for side in sides:
            network = settings(kind, axes, side)
            if network is None:
                continue
            config = SupervisedConfig(classes=("a", "b"))
            explicit = {"full, fused": False, "full, written out": True}.get(kind)
            load = Workload(network, "supervised", config, (1, side * PATCH), (0, 0), 1, explicit=explicit, axes=axes)
            step = price(load)
            points["gflop"][side**axes] = round(step.total_flops / 1e9, 2)
            points["mib"][side**axes] = round((step.peak - step.memory.get(FRAGMENTATION, 0)) / 2**20, 1)
        if points["mib"]:
            slopes = {"slope_work": slope(points["gflop"]), "slope_memory": slope(points["mib"])}
            out[kind] = {"train": points | slopes}
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--arithmetic", action="store_true")
    options = harness.parse(parser, {"seconds": 0.01}, argv)
    sides = SMOKE_SIDES if options.smoke else SIDES
    if options.arithmetic:
        table = {f"{axes}D": counted(axes, sides[axes]) for axes in sides}
    else:
        table = {f"{axes}D": summary(survey(axes, sides[axes], options)) for axes in sides}
    work = "gflop" if options.arithmetic else "ms"
    if options.figure:
        from attention_figure import draw

        draw(table, options.figure, work=work)
    full, axial = (table["2D"][kind]["train"][work] for kind in ("full, fused", "axial"))
    tokens = max(full.keys() & axial.keys())
    result = {"ours": axial[tokens], "peer": full[tokens], "ratio": round(full[tokens] / max(axial[tokens], 1e-9), 2)}
    harness.finish(options, result | {"tokens": tokens} | table)


if __name__ == "__main__":
    main()
