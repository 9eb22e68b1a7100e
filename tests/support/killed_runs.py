"""A small run that tests kill: what its process does, in a module that the process can import."""

from __future__ import annotations

from pathlib import Path

import torch

from saccade.api import pretrain, resume

DATA = "synthetic:tissue?n=24&size=16"
SMALL = {
    "model.size_px": 16,
    "views.local_count": 2,
    "train.batch": 8,
    "train.log_every": 1,
    "train.save_every": 2,
    "train.precision": "fp32",
    "dino.out_dim": 16,
    "dino.head_hidden": 16,
    "dino.bottleneck": 8,
}


def train_or_resume(run: str, steps: int) -> None:
    """Start the run, or go on with it, in one thread."""
    torch.set_num_threads(1)
    if (Path(run) / "config.yaml").exists():
        resume(run)
    else:
        pretrain(DATA, out=run, backbone="vit_micro_patch8_w8", settings=SMALL | {"train.steps": steps})
