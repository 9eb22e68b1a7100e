"""Answers of a study that was never run: curves, gains and crossings are built in, so that tests know them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from saccade.evaluation.learning_curves import Answers, summarise

BACKBONES = ("resnet18", "resnet18_c4", "hybrid_tiny_patch8", "swin_tiny_patch4_window7", "vit_tiny_patch8_conv")
BACKBONES = (*BACKBONES, "vit_tiny_patch8")
START = {"resnet18": 0.2, "resnet18_c4": 0.75, "hybrid_tiny_patch8": 0.0, "swin_tiny_patch4_window7": -0.15}
START |= {"vit_tiny_patch8_conv": -0.3, "vit_tiny_patch8": -0.75}
SLOPE = {"resnet18": 0.95, "resnet18_c4": 0.8, "hybrid_tiny_patch8": 1.15, "swin_tiny_patch4_window7": 1.1}
SLOPE |= {"vit_tiny_patch8_conv": 1.2, "vit_tiny_patch8": 1.9}
GAIN = {"supervised": 0.0, "augmented": 0.55, "dino-knn": 0.1, "dino-logistic": 0.5, "dino-finetuned": 0.8}
LOSS = {"turned": 0.9, "turn 90": 0.8, "stain": 0.5, "blur": 0.3}


def scores(rng: np.random.Generator, truth: np.ndarray, margin: np.ndarray, classes: int) -> np.ndarray:
    """[M C] scores whose true class is above one other by ``margin`` [M]."""
    found = rng.normal(-3, 0.3, (len(truth), classes))
    rows = np.arange(len(truth))
    found[rows, (truth + 1) % classes] = 0
    found[rows, truth] = margin
    return found.astype(np.float32)


def make(
    backbones=BACKBONES, series=tuple(GAIN), sizes=(100, 300, 1000, 3000), seeds=3, images=1200, groups=60, seed=0
) -> tuple[list[Answers], np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, images)
    which = np.arange(images) % groups
    hard = rng.normal(0, 1, images) + rng.normal(0, 0.5, groups)[which]
    taste = {name: rng.normal(0, 0.3, groups)[which] + rng.normal(0, 0.6, images) for name in backbones}
    answers = []
    for name in backbones:
        for way in series:
            for size in sizes:
                for s in range(seeds):
                    log = np.log10(size / 100)
                    mean = START[name] + SLOPE[name] * log + GAIN[way] * (1 - 0.35 * log)
                    mean += np.random.default_rng([s, size]).normal(0, 0.15 / (1 + log)) + rng.normal(0, 0.08)
                    margin = mean + hard + taste[name] + rng.normal(0, 0.4, images)
                    steady = 0.15 if name.endswith("_c4") else 1.0
                    changed = {
                        c: scores(rng, truth, margin - loss * (steady if "turn" in c else 1), 6)
                        for c, loss in LOSS.items()
                    }
                    answers.append(Answers(name, way, size, s, scores(rng, truth, margin, 6), changed))
    return answers, truth, [f"p{g}" for g in which]


def study(summary: dict, backbones=BACKBONES) -> dict:
    """What the driver writes to study.json."""
    angles = list(range(0, 360, 15))
    ripple = np.abs(np.sin(np.radians(angles)))
    far = np.abs(np.sin(2 * np.radians(angles)))
    costs, drift = {}, {}
    for i, name in enumerate(backbones):
        costs[name] = {"parameters": 2_790_000 + 1_300_000 * i, "flops": 1.4e8 * (i + 1) ** 1.5, "tokens": 64}
        costs[name] |= {"images_per_second": 210.5 / (1 + 0.6 * i), "peak_mib": 310.0 + 120 * i}
        scale = 0.25 * far if name.endswith("_c4") else 0.4 * ripple + 0.1 * far + 0.07 * i * ripple
        ways = {"random": 0.5, "supervised": 1.0, "augmented": 0.6, "dino": 0.8}
        drift[name] = {"angles": angles, "error": {way: list(np.round(f * scale, 4)) for way, f in ways.items()}}
    return {
        "data": {
            "name": "synthetic:tissue",
            "n_train": 4000,
            "n_test": 1200,
            "groups_test": summary["units"],
            "classes": ["gland", "stroma", "fat", "muscle", "lymphocytes", "mucus"],
            "text": "The images bring no test part: a fifth of the groups was kept apart.",
        },
        "settings": {"data": "synthetic:tissue", "size_px": 64, "batch": 64, "steps": 300, "augment": "weak"},
        "budget": "Every training has 300 steps of 64 images (or all, where there are fewer).",
        "protocol": "Each cell learns from the first n images of a draw: a smaller draw lies inside a larger one.",
        "backbones": list(backbones),
        "series": {"supervised": "labels only, every image always alike"},
        "costs": costs,
        "drift": drift,
        "summary": summary,
        "cells": {"done": 72, "planned": 72, "failed": [], "seconds": 21_630},
    }


def write(folder: Path, value: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def small_summary(**options) -> dict:
    """Three backbones, quick enough for every test."""
    names = ("resnet18", "resnet18_c4", "vit_tiny_patch8")
    found = make(names, sizes=(100, 1000), seeds=3, images=360, groups=30, **options)
    return summarise(*found, resamples=500)
