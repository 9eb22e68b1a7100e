"""Predicted against measured: operations, peak memory and time of a training step, over many settings.

    python benchmarks/plan.py [--only PART_OF_A_NAME] [--out TABLE.md] [--json]

Every setting runs in two processes of its own on one thread, on noise. One predicts as ``saccade plan`` does
(arithmetic, a bare process, a short measurement with few images) and then counts the operations of a real training
step, forward and backward of all networks, with torch's flop counter. The other trains four steps and reports its peak
resident memory and the time of the fastest step; other work on a machine only adds to that. With ``--out`` a run goes
on where the last one ended. The last line is one JSON object: how many settings are within 2 % (operations), 10 %
(memory), 25 % (time), the largest errors, and all rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import finish, parse

SETTINGS: list[dict[str, Any]] = [
    {"backbone": "vit_tiny_patch8", "size": 64, "batch": 32},
    {"backbone": "vit_tiny_patch8", "size": 64, "batch": 48, "precision": "bf16"},
    {"backbone": "vit_small_patch16", "size": 224, "batch": 6, "precision": "bf16"},
    {"backbone": "vit_small_patch16", "size": 224, "batch": 4},
    {"backbone": "vit_tiny_patch8", "size": 192, "batch": 4, "precision": "bf16"},
    {"backbone": "vit_base_patch16", "size": 224, "batch": 3, "method": "supervised"},
    {"backbone": "vit_micro_patch8_conv", "size": 96, "batch": 32},
    {"backbone": "vit_micro_patch8_window7", "size": 128, "batch": 12, "precision": "bf16"},
    {"backbone": "vit_micro_patch8_axial", "size": 128, "batch": 12},
    {"backbone": "vit_micro_patch8_neighbourhood7", "size": 128, "batch": 12},
    {"backbone": "vit_micro_patch8_strided4", "size": 128, "batch": 12, "precision": "bf16"},
    {"backbone": "vit_tiny_patch8", "size": 96, "batch": 32, "set": {"train.checkpointing": True}},
    {"backbone": "vit_tiny_patch8", "size": 64, "batch": 16, "set": {"train.accumulate": 2}},
    {"backbone": "vit_micro_patch8", "size": 64, "batch": 64, "set": {"dino.out_dim": 65536}},
    {"backbone": "hybrid_tiny_patch8", "size": 96, "batch": 24},
    {"backbone": "hybrid_micro_patch8", "size": 64, "batch": 64, "precision": "bf16", "method": "moco_v3"},
    {"backbone": "swin_tiny_patch4_window7", "size": 224, "batch": 2, "method": "supervised"},
    {"backbone": "swin_micro_patch4_window7", "size": 96, "batch": 16, "precision": "bf16"},
    {"backbone": "hvt_tiny_patch8", "size": 96, "batch": 24},
    {"backbone": "resnet18", "size": 64, "batch": 32},
    {"backbone": "resnet50", "size": 64, "batch": 24, "precision": "bf16", "method": "lejepa"},
    {"backbone": "resnet10_c4", "size": 64, "batch": 32, "method": "same_image"},
    {"backbone": "resnet10_d4", "size": 64, "batch": 16, "precision": "bf16"},
    {"backbone": "vit_tiny_patch8", "size": 96, "batch": 48, "method": "mae"},
    {"backbone": "vit_tiny_patch8", "size": 96, "batch": 24, "method": "dinov2", "precision": "bf16"},
    {"backbone": "vit_tiny_patch8", "size": 96, "batch": 24, "method": "ijepa"},
    {"backbone": "vit_tiny_patch8", "size": 96, "batch": 64, "method": "relative_position"},
    {"backbone": "vit_tiny_patch8", "size": 32, "batch": 16, "axes": 3},
    {"backbone": "vit_micro_patch8", "size": 64, "batch": 4, "axes": 3, "precision": "bf16"},
    {"backbone": "vit_micro_patch8", "size": 64, "batch": 8, "axes": 3, "method": "mae"},
    {"backbone": "vit_micro_patch8_window4", "size": 64, "batch": 4, "axes": 3},
    {"backbone": "hvt_micro_patch8", "size": 64, "batch": 4, "axes": 3},
    {"backbone": "hybrid_micro_patch8", "size": 48, "batch": 4, "axes": 3},
    {"backbone": "resnet10_w16", "size": 48, "batch": 4, "axes": 3, "method": "supervised"},
    {"backbone": "vit_micro_patch8", "size": 64, "batch": 8, "axes": 3, "set": {"model.slices": 4}},
]
LIMITS = {"operations": 0.02, "memory": 0.10, "time": 0.25}


def prepared(setting: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Settings as ``plan`` resolves them, the workload, the device."""
    import torch

    from saccade import runtime
    from saccade.base import config
    from saccade.tasks import plan
    from saccade.train.memory_check import workload
    from saccade.train.recipes import config_for

    torch.set_num_threads(1)
    runtime.keep_freed_memory()
    device = torch.device("cpu")
    given = {"model.backbone": setting["backbone"], "model.size_px": setting["size"], "train.batch": setting["batch"]}
    given |= {"train.precision": setting.get("precision", "fp32"), "train.device": "cpu"} | setting.get("set", {})
    run = config.override(config_for(setting.get("method", "dino"), "microscopy"), given)
    facts, run = plan.inspect_data(None, run, device, setting.get("axes", 2))
    run = plan.resolve_assumed(run, facts.images, facts.channels, device)
    return run, workload(run, device, image_item=facts.item), device


def predict(setting: dict[str, Any]) -> dict[str, Any]:
    """What ``saccade plan`` says, and after it the operations of real steps by torch's counter."""
    from saccade.cost.step import price
    from saccade.tasks import plan

    run, load, device = prepared(setting)
    found = price(load)
    bare = plan.bare_process(run, load, device)
    speed = plan.measured(load, run, device)
    said = {"flops": found.total_flops, "peak": bare + found.peak, "bare": bare, "seconds": speed.seconds}
    return said | {"counted": count(run, load, device)}


def count(run: Any, load: Any, device: Any) -> float:
    """Of one step; the mean of ten where a method draws the number of patches."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from saccade.tasks import plan

    def forward(q: Any, k: Any, v: Any, *others: Any, out_shape: Any = None, **named: Any) -> int:
        return 4 * q[0] * q[1] * q[2] * k[2] * q[3]

    def backward(grad: Any, q: Any, k: Any, v: Any, *others: Any, out_shape: Any = None, **named: Any) -> int:
        return 10 * q[0] * q[1] * q[2] * k[2] * q[3]  # scores once more, and four gradients, as for a GPU

    aten = torch.ops.aten  # torch's own table lacks the CPU's fused attention
    own = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    steps = 10 if load.method in ("ijepa", "dinov2") else 1
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        plan.time_steps(run, load, device, rounds=steps - 1)
    return counter.get_total_flops() / steps


def train(setting: dict[str, Any]) -> dict[str, Any]:
    from saccade.tasks import plan

    run, load, device = prepared(setting)
    seconds = plan.time_steps(run, load, device, rounds=3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak * (1 if sys.platform == "darwin" else 1024), "seconds": seconds}


WORK = {"predict": predict, "train": train}


def in_process(what: str, setting: dict[str, Any]) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", what, json.dumps(setting)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{setting}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def named(setting: dict[str, Any]) -> str:
    more = [f"{key.split('.')[1]}={value}" for key, value in setting.get("set", {}).items()]
    axes = setting.get("axes", 2)
    words = [setting["backbone"], setting.get("method", "dino"), " x ".join([str(setting["size"])] * axes)]
    return ", ".join([*words, f"batch {setting['batch']}", setting.get("precision", "fp32"), *more])


def compare(setting: dict[str, Any]) -> dict[str, Any]:
    """One row; errors are predicted / measured - 1."""
    said, done = in_process("predict", setting), in_process("train", setting)
    return {
        "setting": named(setting),
        "flops": [said["flops"], said["counted"]],
        "peak": [said["peak"], done["peak"]],
        "bare": said["bare"],
        "seconds": [said["seconds"], done["seconds"]],
        "errors": {
            "operations": said["flops"] / said["counted"] - 1,
            "memory": said["peak"] / done["peak"] - 1,
            "time": said["seconds"] / done["seconds"] - 1,
        },
        "step_error": (said["peak"] - said["bare"]) / (done["peak"] - said["bare"]) - 1,
    }


def line(row: dict[str, Any]) -> str:
    (f1, f2), (m1, m2), (s1, s2), e = row["flops"], row["peak"], row["seconds"], row["errors"]
    return (
        f"| {row['setting']} | {f1 / 1e9:,.1f} | {f2 / 1e9:,.1f} | {100 * e['operations']:+.2f} | {m1 / 2**20:,.0f} | "
        f"{m2 / 2**20:,.0f} | {100 * e['memory']:+.1f} | {100 * row['step_error']:+.0f} | {s1:.2f} | {s2:.2f} | "
        f"{100 * e['time']:+.0f} |"
    )


HEAD = (
    "| setting | GFLOP, predicted | measured | % | MiB, predicted | measured | % | % without the bare process | s, "
    "predicted | measured | % |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name has this in it")
    parser.add_argument("--out", type=Path, help="rows are written here as they come; those that are there are kept")
    given = parse(parser, {"only": named(SETTINGS[0])}, argv)
    kept = given.out.with_suffix(".jsonl") if given.out else Path(tempfile.mkdtemp()) / "rows.jsonl"
    rows = [json.loads(text) for text in kept.read_text().splitlines()] if kept.exists() else []
    known = {row["setting"] for row in rows}
    began = time.time()
    for setting in SETTINGS:
        if given.only not in named(setting) or named(setting) in known:
            continue
        rows.append(compare(setting))
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        if not given.json:
            print(line(rows[-1]), f"{time.time() - began:.0f} s", flush=True)
    within = {n: sum(abs(row["errors"][n]) <= limit for row in rows) for n, limit in LIMITS.items()}
    worst = {n: max((abs(row["errors"][n]) for row in rows), default=0.0) for n in LIMITS}
    if given.out:
        given.out.write_text("\n".join([HEAD, *map(line, rows)]) + "\n")
    ours, peer = rows[0]["peak"]
    result = {"ours": ours, "peer": peer, "ratio": ours / peer}  # bytes of the first setting, predicted and measured
    finish(given, result | {"settings": len(rows), "within": within, "worst": worst, "rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(WORK[sys.argv[2]](json.loads(sys.argv[3]))))
    else:
        main()
