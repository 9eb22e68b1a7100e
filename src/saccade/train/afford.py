"""Does a run fit into this machine? Asked before the first step, answered by arithmetic (see ``pricing``)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from saccade import runtime
from saccade.architectures import Settings
from saccade.config import Sections
from saccade.pricing.run import Workload
from saccade.train.settings import DataConfig, ModelConfig, TrainConfig


def workload(sections: Sections, network: Settings, device: torch.device, *, image_item: int = 1) -> Workload:
    """What one step of resolved sections asks of one process. ``image_item``: bytes a number of the decoded images."""
    train: TrainConfig = sections["train"]
    data: DataConfig = sections["data"]
    views = sections["views"]
    assert train.batch is not None
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    return Workload(
        network,
        train.method,
        dataclasses.asdict(sections[train.method]),
        (views.global_count, views.global_px),
        (views.local_count, views.local_px),
        train.batch // runtime.world_size(),
        train.accumulate,
        bf16=train.precision == "bf16",
        device=kind,
        recompute=bool(getattr(train, "checkpointing", False)),
        slices=int(getattr(sections["model"], "slices", 0) or 0),
        image_px=data.cache_px or 0,
        image_item=image_item,
        axes=getattr(network, "axes", 2),
    )


__all__ = ["ModelConfig", "workload"]
