"""A run folder as a real run leaves it, made of invented numbers: for the tests of the report."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from saccade.train.diagnose import save_diagnoses
from saccade.viz.overlays import Neighbour, attention_panel, neighbours_panel, overlay_svg
from saccade.viz.patch_maps import AttentionMap

MODELS = ("dino vit_tiny_patch8", "random:vit_tiny_patch8", "pixels", "colour histogram")
SCORES = dict(zip(MODELS, (0.93, 0.82, 0.69, 0.91)))
OUT_DIM = 4096


def tissue(seed: int, size_px: int = 96) -> np.ndarray:
    """uint8 [3 Y X]: pink ground with dark round nuclei."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px]
    wave = np.sin(x / rng.uniform(6, 14) + rng.uniform(0, 6)) * np.sin(y / rng.uniform(6, 14))
    image = np.array([232, 178, 214])[:, None, None] + 14 * wave + rng.normal(0, 4, (3, size_px, size_px))
    for _ in range(16):
        cy, cx, r = rng.uniform(0, size_px), rng.uniform(0, size_px), rng.uniform(3, 6)
        inside = np.clip((r - np.hypot(y - cy, x - cx)) / 1.5 + 0.5, 0, 1)
        image += inside * (np.array([96, 58, 150])[:, None, None] - image) * 0.85
    return image.clip(0, 255).astype(np.uint8)


def fake_map(seed: int, heads: int = 6, query: bool = False) -> AttentionMap:
    """Smooth positive maps [heads 12 12] whose rows sum to 0.9."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:12, :12]
    values = np.full((heads, 12, 12), 0.002)
    for head in range(heads):
        for _ in range(3):
            cy, cx, r = rng.uniform(0, 12), rng.uniform(0, 12), rng.uniform(0.8, 2.5)
            values[head] += rng.uniform(0.3, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r * r))
    values = (0.9 * values / values.sum(axis=(1, 2), keepdims=True)).astype(np.float32)
    return AttentionMap(
        values=values,
        mean=values.mean(axis=0),
        grid=(12, 12),
        size_px=(96, 96),
        query_box=(40, 48, 8, 8) if query else None,
        kind="attention",
        prefix_share=np.full(heads, 0.1, dtype=np.float32),
        layer=11,
    )


def metric_lines(steps: int = 1200, every: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    uniform = math.log(OUT_DIM)
    lines = []
    for step in range(0, steps, every):
        t = step / steps
        teacher = uniform - 3.2 * (1 - math.exp(-5 * t)) + rng.normal(0, 0.03)
        kl = 0.35 + 0.9 * math.exp(-4 * t) * min(1, 12 * t)
        line: dict[str, Any] = {
            "step": step,
            "epoch": step / 40,
            "seconds": 0.42 * step + 1,
            "images": 64 * step,
            "loss": teacher + kl + rng.normal(0, 0.05),
            "teacher_entropy": teacher,
            "student_entropy": teacher + kl * 0.6,
            "kl": kl,
            "lr": 5e-4 * min(1, t / 0.1) * (0.5 + 0.5 * math.cos(math.pi * t)),
            "weight_decay": 0.4 - 0.36 * (0.5 + 0.5 * math.cos(math.pi * t)),
            "momentum": 1 - 0.004 * (0.5 + 0.5 * math.cos(math.pi * t)),
            "grad_norm": 1.2,
            "images_per_second": 151 + rng.normal(0, 1.5),
        }
        if step % 60 == 0:
            line["rank"] = 9 + 48 * (1 - math.exp(-4 * t)) + rng.normal(0, 0.6)
            line["knn"] = 0.62 + 0.27 * (1 - math.exp(-5 * t)) + rng.normal(0, 0.006)
        lines.append(line)
    return lines


def evaluation() -> dict[str, Any]:
    """Rows for four models, two probes, three fractions, three metrics; differences of the first model."""
    rows, differences = [], []
    fallen = {1.0: 0.0, 0.1: 0.06, 0.01: 0.17}
    sizes = {1.0: 2651, 0.1: 265, 0.01: 27}
    for probe, k, shift in (("logistic", None, 0.0), ("knn", 20, -0.02), ("knn", 100, -0.04)):
        for fraction, drop in fallen.items():
            means = {m: SCORES[m] + shift - drop * (1.6 if m != MODELS[0] else 1.0) for m in MODELS}
            for metric, more in (("accuracy", 0.0), ("balanced_accuracy", -0.003), ("auroc", 0.04)):
                for model, mean in means.items():
                    wide = 0.018 + 0.1 * drop
                    row = {"model": model, "probe": probe, "fraction": fraction, "metric": metric}
                    row |= {"mean": mean + more, "low": mean + more - wide, "high": mean + more + wide * 0.9}
                    row |= {"n_train": sizes[fraction], "repeats": 1 if fraction == 1 else 5}
                    rows.append(row | ({"k": k} if k else {}))
                for against in MODELS[1:]:
                    size = means[MODELS[0]] - means[against]
                    place = {"probe": probe, "fraction": fraction, "metric": metric}
                    d = {"model": MODELS[0], "against": against, **place, "difference": size}
                    d |= {"low": size - 0.031, "high": size + 0.029, "clear": size > 0.031}
                    differences.append(d | ({"k": k} if k else {}))
    text = (
        "Frozen features of 96 px images. Logistic regression with an L2 penalty; its strength is chosen "
        "inside the training part by grouped cross-validation, the same for every model.\n\n"
        "k-NN by cosine similarity, votes weighted exp(s / 0.07). Fractions are stratified and keep whole "
        "groups together; 5 draws below 100 %. Intervals: 95 % bootstrap over the 109 test groups."
    )
    protocol = {"text": text, "split": "the split given with the data", "overlap": False, "seed": 0}
    return {"protocol": protocol, "rows": rows, "differences": differences}


def data_record() -> dict[str, Any]:
    files = [
        {"id": f"{i:06d}.jpg", "sha256": hashlib.sha256(bytes([i])).hexdigest(), "group": f"tile{i}"} for i in range(40)
    ]
    return {
        "source": "lc25000-lung-224.zip",
        "images": 2653,
        "used": 2651,
        "split": "train",
        "channels": 3,
        "dtype": "uint8",
        "range": [0.0, 255.0],
        "size_px": {"min": [224, 224], "max": [224, 224]},
        "labels": {"lung_aca": 864, "lung_n": 899, "lung_scc": 888},
        "groups": 332,
        "duplicates": [["lung/000017.jpg", "lung/000903.jpg"], ["lung/000020.jpg", "lung/001200.jpg"]],
        "damaged": [{"id": "lung/000311.jpg", "reason": "image file is truncated (14 bytes not processed)"}],
        "files": files,
    }


def settings() -> dict[str, dict[str, Any]]:
    return {
        "data": {"source": "lc25000-lung-224.zip", "split": "train", "channels": 3, "cache_px": 144},
        "model": {"backbone": "vit_tiny_patch8", "size_px": 96, "drop_path": 0.0, "norm": "pre"},
        "views": {"global_size": 96, "local_size": 48, "local_count": 6, "global_scale": [0.4, 1.0]},
        "dino": {"out_dim": OUT_DIM, "teacher_temp": 0.04, "student_temp": 0.1, "centre_momentum": 0.9},
        "optim": {"lr": 0.0005, "lr_end": 1e-06, "warmup_fraction": 0.1, "weight_decay": 0.04, "weight_decay_end": 0.4},
        "train": {"method": "dino", "batch": 64, "accumulate": 1, "steps": 1200, "epochs": 29.0, "seed": 0},
    }


def environment() -> dict[str, Any]:
    versions = {"saccade": "0.1.0", "torch": "2.11.0", "timm": "1.0.20", "numpy": "2.3.1"}
    command = "saccade pretrain lc25000-lung-224.zip --out lung-vit --size 96 --steps 1200"
    return {
        "python": "3.12.4",
        "platform": "Linux x86_64",
        "cpus": 16,
        "threads": 16,
        "device": "cuda",
        "bf16": True,
        "seed": 0,
        "command": command,
        "git": "985287f",
        "versions": versions,
    }


def write_figures(folder: Path) -> None:
    folder.mkdir()
    (folder / "attention-0.png").write_bytes(attention_panel(tissue(1), fake_map(1)))
    (folder / "attention-1.png").write_bytes(attention_panel(tissue(2), fake_map(2, query=True)))
    (folder / "mask.svg").write_text(overlay_svg(tissue(2), fake_map(2, query=True)), encoding="utf-8")
    names = ("lung_n", "lung_aca", "lung_scc")
    rows = []
    for q in range(3):
        labels = [names[q if j != 3 else 0] for j in range(7)]
        found = [Neighbour(tissue(10 * q + j), labels[j], 0.99 - 0.013 * j) for j in range(1, 7)]
        rows.append((Neighbour(tissue(10 * q), names[q]), found))
    (folder / "neighbours.png").write_bytes(neighbours_panel(rows))
    index = [
        _entry("attention-0.png", "attention", "What the class token looks at.", "Last layer, every head."),
        _entry("attention-1.png", "attention", "What one patch looks at.", "The marked patch asks."),
        _entry("mask.svg", "segmentation", "The mean map.", "As a vector drawing, for papers."),
        _entry("neighbours.png", "neighbours", "Nearest images.", "Cosine similarity above the label."),
    ]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _entry(file: str, kind: str, title: str, caption: str) -> dict[str, str]:
    return {"file": file, "kind": kind, "title": title, "caption": caption, "alt": f"{title} {caption}"}


def write_fake_run(folder: Path, *, figures: bool = True) -> Path:
    """A complete run; its metrics.jsonl ends in a line cut off by a crash."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(), sort_keys=False), encoding="utf-8")
    why = (
        "A plain transformer with small patches: nuclei are 8 to 12 pixels wide at this size, so a patch of "
        "8 pixels still holds one nucleus. With 2,651 images a convolutional network learns faster; this run "
        "keeps the transformer because its attention can be shown for any patch."
    )
    named = {
        "env.json": environment(),
        "data.json": data_record(),
        "evaluation.json": evaluation(),
        "notes.json": {"why_network": why},
    }
    for name, value in named.items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    lines = [json.dumps(line) for line in metric_lines()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1200, "lo', encoding="utf-8")
    save_diagnoses(folder)
    if figures:
        write_figures(folder / "figures")
    return folder
