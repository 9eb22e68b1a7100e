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
from saccade.base.config import Sections
from saccade.base.contracts import Record
from saccade.cost import system_memory
from saccade.cost.alternatives import alternatives, largest_batch, smallest_patch
from saccade.cost.plan_report import Planned, Speed
from saccade.cost.step_memory import Workload, price
from saccade.data.cache.image_cache import ImageCache, input_spec
from saccade.data.probe import first_sample, typical_px, usual_channels
from saccade.errors import UsageError
from saccade.train.data_selection import open_part, settle_intensity, settle_tiles
from saccade.train.loop import Plan, learn
from saccade.train.memory_check import free_memory, workload
from saccade.train.optim import make_optimizer
from saccade.train.prepare import make_method, model_options, network_settings, settle_stream
from saccade.train.recipes import sections_for
from saccade.train.resolve import check_sections, resolve, resolve_length, resolve_size
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


def of_side(sections: Sections, side: int, device: torch.device, axes: int) -> Sections:
    """The sections with the sizes that images of ``side`` have, none of which are tiles of slides."""
    sections = sections | {"data": dataclasses.replace(sections["data"], axes=axes, **NO_TILES)}
    return resolve_size(sections, side, device, axes)


def looked_at(
    data: str | Path | None, sections: Sections, device: torch.device, axes: int
) -> tuple[int, int, int, Sections]:
    """Images, channels, bytes a number, and the sections with sizes decided, by a look at the first few images."""
    if data is None:
        size = sections["model"].size_px
        if size is None:
            raise UsageError("plan needs DATA or --size", hint="for example --size 224")
        channels = sections["data"].channels or (3 if axes == 2 else 1)
        images = max(ASSUMED_IMAGES, sections["train"].batch or 0)
        return images, channels, 1, of_side(sections, round(1.5 * size), device, axes)
    sections = config.override(sections, {"data.source": str(data)})
    source = open_part(sections["data"], sections["model"].weights).source
    sections = sections | {"data": settle_tiles(settle_intensity(sections["data"], source), source)}
    sections = resolve_size(sections, typical_px(source, sections["data"].size_mm), device, source.axes)
    channels = sections["data"].channels or usual_channels(source)
    item = 1 if first_sample(source).pixels.dtype == np.uint8 else 4
    sections = sections | {"data": dataclasses.replace(settle_stream(sections["data"], source), axes=source.axes)}
    return min(len(source), sections["data"].limit or len(source)), channels, item, sections


def settled(sections: Sections, images: int, channels: int, device: torch.device) -> Sections:
    """Every None decided as ``pretrain`` does it; statistics of the images have no price."""
    data = sections["data"]
    flat = {"mean": data.mean or (0.5,) * channels, "std": data.std or (0.25,) * channels}
    sections = sections | {"data": dataclasses.replace(data, **flat)}
    model_options(sections["model"])
    # A step costs what its batch costs, also where DATA is one volume.
    images = max(images, sections["train"].batch or 2)
    sections = resolve(sections, images=images, channels=channels, device=device, axes=data.axes)
    train = sections["train"]
    trial = sections | {"train": dataclasses.replace(train, steps=train.steps or 1000)}
    return resolve_length(trial, images, ("0", "1"))


# --- measurement -------------------------------------------------------------------------------


def time_steps(sections: Sections, load: Workload, device: torch.device, rounds: int = 3) -> float:
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
        mean=sections["data"].mean,
        std=sections["data"].std,
    ).numbered(("0", "1"))
    local = load.local_views
    changed = config.override(
        sections,
        {
            "train.batch": load.batch,
            "train.accumulate": load.accumulate,
            "model.size_px": load.network.size_px,
            "views.global_px": load.global_views[1],
            **({"views.local_px": local[1]} if local[0] else {}),
        },
    )
    spec = input_spec(cache, load.network.size_px, grey=sections["data"].grey)
    method = make_method(changed, load.network.channels, device, load_weights=False)
    optimizer = make_optimizer(method, changed["optim"], device)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        run = Plan(Path(folder), changed["train"], changed["optim"], changed["views"], spec, device)
        for step in range(1 + rounds):
            began = time.perf_counter()
            learn(run, method, optimizer, cache, step)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:] or seconds)


def bare_process(sections: Sections, load: Workload, device: torch.device) -> int:
    """Bytes that this process holds after one step of as good as nothing: all libraries are loaded then."""
    side, unit = load.global_views[1], load.network.unit_px
    tiny = max(unit, min(side, 2 * unit, 64 // unit * unit or unit))
    count, local = load.local_views
    network = dataclasses.replace(load.network, size_px=tiny)
    least = load.with_(network=network, global_views=(load.global_views[0], tiny), batch=2, accumulate=1)
    least = least.with_(local_views=(count, min(local, tiny)), image_px=tiny, explicit=None)
    before = price(least).peak
    time_steps(sections, least, device, rounds=0)
    return max(0, system_memory.resident() - before)


def _too_large(load: Workload, device: torch.device) -> bool:
    free = free_memory(device)
    return free is not None and price(load).peak > free // 2


def _more_images(load: Workload, least: int, seconds: float) -> int:
    """A second batch that takes about a second."""
    return min(load.batch, max(least + 1, min(16, round(least * 1.2 / max(seconds, 1e-3)))))


def _measured_smaller(load: Workload, sections: Sections, device: torch.device) -> Speed:
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
        ).with_(image_px=min(load.image_px, round(1.5 * side)), explicit=None)
        if price(small).total_flops <= QUICK_FLOPS and not _too_large(small, device):
            break
    seconds = time_steps(sections, small, device)
    rate = price(small).total_flops / seconds
    return Speed(price(load).total_flops / rate, rate, f"by the rate measured here on views of {side} px")


def measured(load: Workload, sections: Sections, device: torch.device) -> Speed:
    """Seconds of a step, from steps of the same run with two small batches: what is fixed, and what an image adds."""
    least = 2
    small = load.with_(batch=least, accumulate=1, explicit=None)
    if price(small).total_flops > QUICK_FLOPS or _too_large(small, device):
        return _measured_smaller(load, sections, device)
    one = time_steps(sections, small, device)
    images = _more_images(load, least, one)
    if images <= least:
        flops = price(small).total_flops
        rate = flops / one
        return Speed(price(load).total_flops / rate, rate, f"measured here with {least} images a step")
    more = small.with_(batch=images)
    while _too_large(more, device) and more.batch > least + 1:
        more = more.with_(batch=(least + more.batch) // 2)
    two = time_steps(sections, more, device)
    each = max((two - one) / (more.batch - least), 0.2 * two / more.batch)
    seconds = load.accumulate * (two + (load.batch - more.batch) * each)
    how = f"measured here with {least} and {more.batch} images a step"
    return Speed(seconds, price(load).total_flops / seconds, how)


# --- the plan ----------------------------------------------------------------------------------


def plan(
    data: str | Path | None, method: str, recipe: str, settings: Mapping[str, Any], options: PlanOptions | None = None
) -> Planned:
    """The price of the run that ``pretrain`` would start with these settings; nothing is trained or decoded.

    data   None: 1,000 images that are half as large again as the input are assumed
    Raises UsageError, ModelError, DataError.
    """
    options = options or PlanOptions()
    device = runtime.pick_device(settings.get("train.device"))
    given = dict(settings)
    if options.attention and options.attention not in PATHS:
        given["model.attention"] = options.attention
    sections = config.override(sections_for(method, recipe), given)
    check_sections(sections)
    images, channels, item, sections = looked_at(data, sections, device, options.axes)
    return priced(sections, images, channels, item, options, assumed=data is None)


def priced(
    sections: Sections, images: int, channels: int, item: int, options: PlanOptions, *, assumed: bool = False
) -> Planned:
    """The price of a run whose sizes are decided, on so many images of so many channels, ``item`` bytes a number."""
    device = runtime.pick_device(sections["train"].device)
    sections = settled(sections, images, channels, device)
    network = network_settings(sections, channels)
    load = workload(sections, network, device, image_item=item)
    load = load.with_(explicit=PATHS.get(options.attention))
    found = price(load)
    bare = bare_process(sections, load, device)
    speed = measured(load, sections, device) if options.measure else None
    pixels = images * item * channels * int(sections["data"].cache_px or 0) ** load.axes
    held = 0 if sections["data"].stream else min(pixels, sections["data"].cache_mib * 2**20)
    free = free_memory(device)
    memory = options.memory if options.memory is not None else None if free is None else free + bare
    left = None if memory is None else memory - bare - (held if device.type == "cpu" else 0)
    return Planned(
        load,
        found,
        images,
        assumed,
        bare if device.type == "cpu" else 0,
        held if device.type == "cpu" else 0,
        0 if sections["data"].stream else pixels,
        sections["train"].keep,
        memory,
        None if left is None else largest_batch(load, left),
        None if left is None else smallest_patch(load, left),
        alternatives(load),
        speed,
    )
