"""Whether a run fits into the memory of this machine, checked before the first step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saccade import runtime
from saccade.augment.settings import ResolvedViews
from saccade.base.contracts import InputSpec
from saccade.cost import system_memory
from saccade.cost.alternatives import accumulated, alternatives, largest_batch
from saccade.cost.explain import sentence
from saccade.cost.step import Price, Step, Workload, price
from saccade.errors import MemoryShort, UnknownCost
from saccade.methods.base import Method
from saccade.train.loop import Plan, update
from saccade.train.optim import make_optimizer
from saccade.train.prepare import network_settings
from saccade.train.run_config import ResolvedRun
from saccade.train.settings import ResolvedOptim, ResolvedTrain

OFFERED = 7


def workload(
    run: ResolvedRun, device: torch.device, *, image_item: int = 1, image_sides: tuple[int, ...] = ()
) -> Workload:
    """What one step of a run asks of one process.

    Parameters
    ----------
    image_item
        Bytes per value of the decoded images.
    image_sides
        Largest side of the decoded images on each axis, which a batch is padded to.
    """
    train, views = run.train, run.views
    return Workload(
        network_settings(run),
        train.method,
        run.method,
        (views.global_count, views.global_px),
        (views.local_count, views.local_px),
        train.batch // runtime.world_size(),
        train.accumulate,
        bf16=train.precision == "bf16",
        device="cuda" if device.type == "cuda" else "cpu",
        recompute=train.checkpointing,
        slices=run.model.slices,
        image_px=run.data.cache_px,
        image_item=image_item,
        image_sides=image_sides,
        axes=run.data.axes,
        make_step=LoopStep(run.optim, train, views),
    )


@dataclass(frozen=True)
class LoopStep:
    """Makes the step of the training loop, with the optimizer of a run, for ``Workload.make_step``.

    Equal for runs whose steps cost the same: whatever else of ``train`` decides the cost is in the workload.
    """

    optim: ResolvedOptim
    train: ResolvedTrain = field(compare=False)
    views: ResolvedViews = field(compare=False)

    def __call__(self, load: Workload, method: Method) -> Step:
        device = torch.device(load.device)
        train = dataclasses.replace(self.train, batch=load.batch, accumulate=load.accumulate)
        values = (0.5,) * load.network.channels
        spec = InputSpec(load.network.channels, load.network.size_px, 0.0, 255.0, values, values, axes=load.axes)
        plan = Plan(Path(), train, self.optim, self.views, spec, device)
        optimizer = make_optimizer(method, self.optim, device)
        return lambda batches, progress: update(plan, method, optimizer, batches, progress)


def free_memory(device: torch.device) -> int | None:
    """Free bytes on the card, or on the machine within its control group; None where they are not reported."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return system_memory.available() if device.type == "cpu" else None


def check_memory(load: Workload, device: torch.device, free: int | None = None) -> None:
    """Raise MemoryShort, with settings that would fit, where a step does not fit.

    Parameters
    ----------
    free
        Bytes; None asks the machine. Processes on one machine share its memory.
    """
    free = free_memory(device) if free is None else free
    if free is None:
        return
    try:
        cost = price(load)
    except UnknownCost:  # no reason not to train
        return
    processes = 1 if device.type == "cuda" else runtime.world_size()
    if cost.peak * processes > free:
        raise refusal(load, cost, free // processes, "free on the card" if device.type == "cuda" else "available")


def refusal(load: Workload, cost: Price, free: int, where: str) -> MemoryShort:
    """The error: what is needed, what is free, what dominates, and what would fit, the cheapest first."""
    lines: list[str] = []
    for option in alternatives(load):
        if option.price.peak <= free and len(lines) < OFFERED:
            ratio = option.price.total_flops / max(1, cost.total_flops)
            lines.append(
                f"{option.how}  ({system_memory.format_bytes(option.price.peak)}, {ratio:.2g} times the operations)"
            )
    batch = largest_batch(load, free)
    if batch:
        lines.append(f"--batch {batch}  (the largest that fits)")
    smaller = accumulated(load, free)
    if smaller is not None:
        lines.append(f"--batch {smaller.batch} --set train.accumulate={smaller.accumulate}  (the same step in parts)")
    hint = "what fits instead:\n        " + "\n        ".join(lines) if lines else "a smaller network or --size"
    return MemoryShort(
        "this run does not fit into memory",
        got=f"{system_memory.format_bytes(cost.peak)} for one step; most of it: {sentence(cost, load)}",
        expected=f"at most {system_memory.format_bytes(free)}, which is {where}",
        hint=f"{hint}\n        saccade plan shows the price of every setting",
    )
