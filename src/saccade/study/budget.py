"""The cost of a backbone in a study: counted by ``cost``, and measured in a separate process."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from saccade import runtime
from saccade.cost import flops
from saccade.data.cache.image_cache import input_spec
from saccade.models.backbones.build import build
from saccade.study.conditions import ANGLES, drift
from saccade.study.design import StudyConfig, settings_of
from saccade.study.images import Images
from saccade.tasks.finetune import FinetuneOptions, supervised_config
from saccade.train.loop import Plan, train_step
from saccade.train.optim import make_optimizer
from saccade.train.prepare import inherit, make_method
from saccade.train.resolve import resolve

STEPS = 8


def price(study: StudyConfig, images: Images, backbone: str) -> dict[str, Any]:
    """Parameters, operations and tokens per image; measured training images per second and peak memory.

    Memory is the growth of the process (on a GPU, of the allocator) since before the network was built: call it in a
    new process.
    """
    device = runtime.pick_device()
    before = _peak_mib(device)
    cache = images.train.numbered(images.classes)
    settings = {"train.steps": 1000, "model.size_px": study.size_px, "train.batch": min(study.batch, len(cache))}
    settings |= {"data.grey": study.grey, "data.cache_px": round(1.5 * study.size_px)} | settings_of(
        study, "supervised"
    )
    options = FinetuneOptions(study.augment, recipe=study.recipe)
    run = resolve(
        inherit(supervised_config(backbone, options, settings, {}), cache),
        images=len(cache),
        channels=cache.channels,
        device=device,
        labels=tuple(images.classes),
    )
    method = make_method(run, device)
    optimizer = make_optimizer(method, run.optim, device)
    spec = input_spec(cache, study.size_px, grey=study.grey)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), run.train, run.optim, run.views, spec, device)
        for step in range(STEPS):
            start = time.perf_counter()
            train_step(plan, method, optimizer, cache, step, 0.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    analytic = flops.cost(backbone, size_px=study.size_px, channels=cache.channels)
    return {
        "parameters": analytic.parameters,
        "flops": analytic.flops,
        "tokens": analytic.tokens,
        "images_per_second": round(settings["train.batch"] / statistics.median(seconds[2:]), 1),
        "peak_mib": round(_peak_mib(device) - before, 1),
    }


def random_drift(study: StudyConfig, images: Images, backbone: str) -> dict[str, Any]:
    """The drift of the network with random weights."""
    device = runtime.pick_device()
    spec = input_spec(images.train, study.size_px, grey=study.grey)
    network = build(backbone, channels=spec.channels, size_px=spec.size_px).eval().to(device)
    return {"angles": list(ANGLES), "error": drift(lambda x: network(x).cls, images.test, spec, device)}


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
