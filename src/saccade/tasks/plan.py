"""The price of a run before it is paid: arithmetic (``pricing``) and a short measurement of this machine.

What a step needs and does is counted. How fast this machine is at just these shapes, and what a process holds before it
has any network, is measured: a few steps of the same run with few images, on smaller views where even that is too much.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.base import config
from saccade.base.contracts import Record, Source
from saccade.cost import system_memory
from saccade.cost.alternatives import alternatives, largest_batch, smallest_patch
from saccade.cost.plan_report import Planned, Speed
from saccade.cost.step import Workload, price
from saccade.data.cache.image_cache import ImageCache, input_spec
from saccade.data.probe import first_sample, padded_sides, usual_channels
from saccade.data.slides.slide_source import tiles_in
from saccade.errors import UsageError
from saccade.train.data_selection import open_subset
from saccade.train.loop import Plan, train_step
from saccade.train.memory_check import free_memory, workload
from saccade.train.optim import make_optimizer
from saccade.train.prepare import make_method, model_options, resolve_data
from saccade.train.recipes import config_for
from saccade.train.resolve import check_config, resolve, resolve_size
from saccade.train.run_config import ResolvedRun, RunConfig
from saccade.train.settings import NO_TILES

ASSUMED_IMAGES = 1000
QUICK_FLOPS = 4e11
"""Operations of one step of the measurement, at most: some seconds on two cores."""
PATHS = {"explicit": True, "fused": False}


@dataclass(frozen=True)
class PlanOptions:
    """What ``plan`` is asked beside the settings of a run.

    memory      bytes that may be used; None: what is free on this machine
    attention   a pattern (see ``model.attention``), or the path: explicit (written out, as others do it) or fused
    measure     time some small steps      axes   2 or 3 where there are no data to say it
    """

    memory: int | None = None
    attention: str = ""
    measure: bool = True
    axes: int = 2


# --- settings ----------------------------------------------------------------------------------


def of_side(run: RunConfig, side: int, device: torch.device, axes: int) -> RunConfig:
    """The configuration with the sizes of images of ``side`` pixels, none of which are tiles of slides."""
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, axes=axes, **NO_TILES))
    return resolve_size(run, side, device, axes)


@dataclass(frozen=True)
class DataFacts:
    """What a plan needs of the images: how many, channels, bytes per value, and the sides that a batch is padded to."""

    images: int
    channels: int
    item: int
    sides: tuple[int, ...] = ()
    assumed: bool = False


def inspect_data(
    data: str | Path | None, run: RunConfig, device: torch.device, axes: int, source: Source | None = None
) -> tuple[DataFacts, RunConfig]:
    """What some of the images say of all, and the configuration with its sizes.

    source   all images of ``data``, where they are open already
    """
    if data is None:
        size = run.model.size_px
        if size is None:
            raise UsageError("plan needs DATA or --size", hint="for example --size 224")
        channels = run.data.channels or (3 if axes == 2 else 1)
        images = max(ASSUMED_IMAGES, run.train.batch or 0)
        return DataFacts(images, channels, 1, assumed=True), of_side(run, round(1.5 * size), device, axes)
    run = config.override(run, {"data.source": str(data)})
    source = open_subset(run.data, run.model.weights, source).source
    run = resolve_data(run, source, device)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, axes=source.axes))
    channels = run.data.channels or usual_channels(source)
    item = 1 if first_sample(source).pixels.dtype == np.uint8 else 4
    images = min(len(source), run.data.limit or len(source))
    of_files = source.axes == 2 and tiles_in(source) is None
    sides = padded_sides(source, run.data.cache_px) if of_files and run.data.cache_px else ()
    return DataFacts(images, channels, item, sides), run


def resolve_assumed(run: RunConfig, images: int, channels: int, device: torch.device) -> ResolvedRun:
    """Decide every open setting as ``pretrain`` does; the statistics of the images do not matter for the price."""
    data = run.data
    mean, std = data.mean or (0.5,) * channels, data.std or (0.25,) * channels
    run = dataclasses.replace(run, data=dataclasses.replace(data, mean=mean, std=std))
    model_options(run.model)
    # A step costs what its batch costs, also where DATA is one volume.
    images = max(images, run.train.batch or 2)
    return resolve(run, images=images, channels=channels, device=device, axes=data.axes or 2, labels=("0", "1"))


# --- measurement -------------------------------------------------------------------------------


def time_steps(run: ResolvedRun, load: Workload, device: torch.device, rounds: int = 3) -> float:
    """The best of some steps on noise, after one that is not counted."""
    shape = (load.network.channels, *(load.image_px or load.global_views[1],) * load.axes)
    count, pixels = load.batch, math.prod((load.network.channels, *(load.image_px,) * load.axes))
    flat = np.random.default_rng(0).integers(0, 256, count * pixels, dtype=np.uint8)
    cache = ImageCache(
        flat,
        np.array([shape] * count),
        np.arange(count) * pixels,
        [Record(str(i), label=str(i % 2)) for i in range(count)],
        [str(i) for i in range(count)],
        np.array([shape[1:]] * count),
        [],
        0.0,
        255.0,
        mean=run.data.mean,
        std=run.data.std,
    ).numbered(("0", "1"))
    local = load.local_views
    changed = config.override(
        run,
        {
            "train.batch": load.batch,
            "train.accumulate": load.accumulate,
            "model.size_px": load.network.size_px,
            "views.global_px": load.global_views[1],
            **({"views.local_px": local[1]} if local[0] else {}),
        },
    )
    spec = input_spec(cache, load.network.size_px, grey=run.data.grey)
    method = make_method(changed, device, load_weights=False)
    optimizer = make_optimizer(method, changed.optim, device)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), changed.train, changed.optim, changed.views, spec, device)
        for step in range(1 + rounds):
            began = time.perf_counter()
            train_step(plan, method, optimizer, cache, step, 0.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:] or seconds)


def bare_process(run: ResolvedRun, load: Workload, device: torch.device) -> int:
    """Bytes that this process holds after one step of as good as nothing: all libraries are loaded then."""
    side, unit = load.global_views[1], load.network.unit_px
    tiny = max(unit, min(side, 2 * unit, 64 // unit * unit or unit))
    count, local = load.local_views
    network = dataclasses.replace(load.network, size_px=tiny)
    least = load.with_(network=network, global_views=(load.global_views[0], tiny), batch=2, accumulate=1)
    least = least.with_(local_views=(count, min(local, tiny)), image_px=tiny, image_sides=(), explicit=None)
    before = price(least).peak
    time_steps(run, least, device, rounds=0)
    return max(0, system_memory.resident() - before)


def _too_large(load: Workload, device: torch.device) -> bool:
    free = free_memory(device)
    return free is not None and price(load).peak > free // 2


def _more_images(load: Workload, least: int, seconds: float) -> int:
    """A second batch that takes about a second."""
    return min(load.batch, max(least + 1, min(16, round(least * 1.2 / max(seconds, 1e-3)))))


def _measured_smaller(load: Workload, run: ResolvedRun, device: torch.device) -> Speed:
    """The rate of smaller views, where two images of the planned size are too much for a measurement."""
    side, unit = load.global_views[1], load.network.unit_px
    small = load
    while side > 2 * unit:
        side = max(2 * unit, side // 2 // unit * unit)
        network = dataclasses.replace(load.network, size_px=side)
        count, local = load.local_views
        local = min(local, max(unit, math.ceil(local * side / load.global_views[1] / unit) * unit))
        small = load.with_(
            network=network,
            global_views=(load.global_views[0], side),
            local_views=(count, local),
            batch=2,
            accumulate=1,
        ).with_(image_px=min(load.image_px, round(1.5 * side)), image_sides=(), explicit=None)
        if price(small).total_flops <= QUICK_FLOPS and not _too_large(small, device):
            break
    seconds = time_steps(run, small, device)
    rate = price(small).total_flops / seconds
    return Speed(price(load).total_flops / rate, rate, f"by the rate measured here on views of {side} px")


def measured(load: Workload, run: ResolvedRun, device: torch.device) -> Speed:
    """Seconds of a step, from steps of the same run with two small batches: what is fixed, and what an image adds."""
    least = 2
    small = load.with_(batch=least, accumulate=1, explicit=None)
    if price(small).total_flops > QUICK_FLOPS or _too_large(small, device):
        return _measured_smaller(load, run, device)
    small_seconds = time_steps(run, small, device)
    images = _more_images(load, least, small_seconds)
    if images <= least:
        flops = price(small).total_flops
        rate = flops / small_seconds
        return Speed(price(load).total_flops / rate, rate, f"measured here with {least} images a step")
    more = small.with_(batch=images)
    while _too_large(more, device) and more.batch > least + 1:
        more = more.with_(batch=(least + more.batch) // 2)
    more_seconds = time_steps(run, more, device)
    each = max((more_seconds - small_seconds) / (more.batch - least), 0.2 * more_seconds / more.batch)
    seconds = load.accumulate * (more_seconds + (load.batch - more.batch) * each)
    how = f"measured here with {least} and {more.batch} images a step"
    return Speed(seconds, price(load).total_flops / seconds, how)


# --- the plan ----------------------------------------------------------------------------------


def plan(
    data: str | Path | None,
    method: str,
    recipe: str,
    settings: Mapping[str, Any],
    options: PlanOptions | None = None,
    source: Source | None = None,
) -> Planned:
    """The price of the run that ``pretrain`` would start with these settings; nothing is trained or decoded.

    data     None: 1,000 images that are half as large again as the input are assumed
    source   all images of ``data``, where they are open already
    Raises UsageError, ModelError, DataError.
    """
    options = options or PlanOptions()
    device = runtime.pick_device(settings.get("train.device"))
    given = dict(settings)
    if options.attention and options.attention not in PATHS:
        given["model.attention"] = options.attention
    run = config.override(config_for(method, recipe), given)
    check_config(run)
    facts, run = inspect_data(data, run, device, options.axes, source)
    return priced(run, facts, options)


def priced(asked: RunConfig, facts: DataFacts, options: PlanOptions) -> Planned:
    """The price of a run whose sizes are decided, on such images."""
    device = runtime.pick_device(asked.train.device)
    run = resolve_assumed(asked, facts.images, facts.channels, device)
    load = workload(run, device, image_item=facts.item, image_sides=facts.sides)
    load = load.with_(explicit=PATHS.get(options.attention))
    cost = price(load)
    bare = bare_process(run, load, device)
    speed = measured(load, run, device) if options.measure else None
    pixels = facts.images * facts.item * facts.channels * run.data.cache_px**load.axes
    held = 0 if run.data.stream else min(pixels, run.data.cache_mib * 2**20)
    free = free_memory(device)
    memory = options.memory if options.memory is not None else None if free is None else free + bare
    left = None if memory is None else memory - bare - (held if device.type == "cpu" else 0)
    return Planned(
        load,
        cost,
        facts.images,
        facts.assumed,
        bare if device.type == "cpu" else 0,
        held if device.type == "cpu" else 0,
        0 if run.data.stream else pixels,
        run.train.keep,
        memory,
        None if left is None else largest_batch(load, left),
        None if left is None else smallest_patch(load, left),
        alternatives(load),
        speed,
    )
