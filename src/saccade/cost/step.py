"""What one training step costs: the real method and its real step, run on tensors without values (see ``recorder``).

Operations are counted, and the peak memory is that of the recorded allocations: weights, teacher, gradients, state of
the optimizer, whatever autograd keeps, and temporary tensors of the forward and the backward pass. Not included is what
the process holds before it has any network, and what a kernel allocates inside itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from saccade import runtime
from saccade.augment.views import CACHE_ELEMENTS
from saccade.base.contracts import Features, Progress, Role, View
from saccade.cost.allocator import play
from saccade.cost.flops import build_network, without_values
from saccade.cost.recorder import GRADIENTS, IN_FLIGHT, OPTIMIZER, Block, Event, Recorder
from saccade.errors import SaccadeError, UnknownCost
from saccade.methods.base import Method
from saccade.methods.registry import build_method, card_of
from saccade.models.backbones.build import use_checkpointing
from saccade.models.nn.attention import attention_path
from saccade.models.nn.network import Network
from saccade.models.settings import BackboneSettings

WEIGHTS, FROZEN = "weights", "weights without gradients (teacher)"
IMAGES, VIEWS = "decoded images of a batch", "views"
FRAGMENTATION = "memory fragmentation"
FP32 = 4
RANDOM_STEPS, ALIKE = 8, 0.01
"""Steps to record of methods that draw how many patches they hide, unless two steps cost the same but for ALIKE."""
PLAYED = 2
"""Micro-batches to record, at most."""
Step = Callable[[Iterable[list[View]], Progress], object]
"""One optimizer step on micro-batches of views."""


def adamw_step(load: Workload, method: Method) -> Step:
    """Backward pass of every micro-batch, then AdamW: a step for workloads that belong to no run."""
    parameters = [p for _, p in method.parameters_to_train() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def step(batches: Iterable[list[View]], progress: Progress) -> None:
        optimizer.zero_grad(set_to_none=True)
        for views in batches:
            with runtime.autocast(torch.device(load.device), "bf16" if load.bf16 else "fp32"):
                output = method.step(views, progress)
            output.loss.backward()
        method.before_update(progress)
        optimizer.step()
        method.after_update(progress)

    return step


@dataclass(frozen=True)
class Workload:
    """Everything that the cost of one optimizer step depends on.

    Parameters
    ----------
    network : BackboneSettings
        Of the backbone, with its options and the size it is made for.
    method : str
        Name of the method.
    config : object
        Resolved configuration of the method.
    global_views, local_views : tuple of int
        Number of views per image, and their side in pixels.
    batch : int
        Images of a micro-batch in one process.
    accumulate : int
        Micro-batches of a step.
    bf16 : bool
        The step runs under autocast to bf16.
    device : str
        ``cpu`` or ``cuda``.
    explicit : bool, optional
        Attention written out (True), fused (False), or as ``nn.attention`` decides (None).
    recompute : bool
        Activation checkpointing.
    slices : int
        Slices that stand for one volume; 0: none.
    image_px, image_item : int
        Shorter side of the decoded images, and bytes per value.
    image_sides : tuple of int
        Sides that a batch is padded to; empty: ``image_px`` on every axis.
    axes : int
        2 for images, 3 for volumes.
    make_step : callable
        Takes the workload and the method. Makes the optimizer and returns the step to record. Hashable: workloads
        that are equal are traced once.
    """

    network: BackboneSettings
    method: str
    config: Any
    global_views: tuple[int, int]
    local_views: tuple[int, int]
    batch: int
    accumulate: int = 1
    bf16: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    explicit: bool | None = None
    recompute: bool = False
    slices: int = 0
    image_px: int = 0
    image_item: int = 1
    image_sides: tuple[int, ...] = ()
    axes: int = 2
    make_step: Callable[[Workload, Method], Step] = field(default=adamw_step, repr=False)

    def with_(self, **changes: Any) -> Workload:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def padded_px(self) -> tuple[int, ...]:
        """Rows and columns (of volumes also slices) of the decoded images of a batch."""
        return self.image_sides or (self.image_px or self.global_views[1],) * self.axes


@dataclass(frozen=True)
class Price:
    """What a workload costs.

    Parameters
    ----------
    tokens : tuple of int
        Of one global and of one local view; 0: there are no such views.
    parameters, learned : int
        Of the backbone; of all that the optimizer updates.
    flops : mapping
        Floating-point operations of one optimizer step by label; two for a multiply-add.
    memory : mapping
        Bytes by label at the peak, the largest first. Beyond what the process holds before it has a network.
    attention : int
        Bytes of the attention matrices of one layer for the global views of a batch, were they written out; 0 for
        networks without attention.
    state : int
        Bytes of a checkpoint: all weights and the state of the optimizer.
    """

    tokens: tuple[int, int]
    parameters: int
    learned: int
    flops: Mapping[str, int]
    memory: Mapping[str, int]
    attention: int
    state: int = field(repr=False)

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def peak(self) -> int:
        return sum(self.memory.values())

    @property
    def dominating(self) -> str:
        """The largest label; fragmentation is a consequence of the others."""
        return next((name for name in self.memory if name != FRAGMENTATION), "")


# --- one step -----------------------------------------------------------------------------------


def make_method(load: Workload) -> Method:
    """The method of a workload around its networks."""

    def make_teacher() -> Network:
        plain: dict[str, Any] = {"drop_path": 0.0} if "drop_path" in load.network.options else {}
        return build_network(dataclasses.replace(load.network, **plain), load.slices)

    student = build_network(load.network, load.slices)
    if load.recompute:
        use_checkpointing(student)
    return build_method(load.method, student, make_teacher, load.config, seed=0)


@dataclass(frozen=True)
class Trace:
    """Recorded steps of one workload.

    Parameters
    ----------
    steps : sequence
        The allocations of every step; more than one where a method draws how much it computes.
    flops : mapping
        Mean over the steps, by label.
    weights : mapping
        Bytes of the weights by label: they are there all the time.
    tokens, parameters, learned, state
        See ``Price``.
    """

    steps: Sequence[Sequence[Event]]
    flops: Mapping[str, int]
    weights: Mapping[str, int]
    tokens: tuple[int, int]
    parameters: int
    learned: int
    state: int


def trace(load: Workload) -> Trace:
    """Run the real step on tensors without values.

    Raises
    ------
    SaccadeError
        What the network or the method raises for settings that do not fit.
    UnknownCost
        The method or the network cannot run on tensors without values.
    """
    try:
        return _trace(load)
    except SaccadeError:
        raise
    except Exception as error:  # of the code of a method or a network, which may be anybody's
        raise UnknownCost(
            f"the cost of {load.method} with {load.network.name} is unknown",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="settings that are hashable, and a step that runs on tensors without values (torch's FakeTensor)",
            hint="values of tensors must not decide what is computed; training itself is not affected",
        ) from error


@functools.lru_cache(maxsize=32)
def _trace(load: Workload) -> Trace:
    with runtime.single_process(), attention_path(load.explicit), torch.random.fork_rng(devices=[]):
        return _traced(load, torch.device(load.device if torch.cuda.is_available() else "cpu"))


def _traced(load: Workload, device: torch.device) -> Trace:
    recorder, method = without_values(lambda: make_method(load), device)
    weights = Counter[str]()
    for tensor in (*method.parameters(), *method.buffers()):
        weights[WEIGHTS if tensor.requires_grad else FROZEN] += tensor.nbytes
    if not card_of(load.method).has_teacher:  # running statistics, or a network that is not trained
        weights[WEIGHTS] += weights.pop(FROZEN, 0)
    optimized = [p for _, p in method.parameters_to_train() if p.requires_grad]
    step = load.make_step(load.with_(device=device.type), method)
    steps: list[list[Event]] = []
    flops: list[Counter[str]] = []
    for number in range(1, 1 + (RANDOM_STEPS if card_of(load.method).needs_masking else 1)):
        recorder.flops.clear()
        with recorder.recording():
            batches = _batches(load, min(load.accumulate, PLAYED), recorder, device)
            step(batches, Progress(number, 2 * number, 0.5, 1.0))  # the middle of a run: nothing is frozen any more
            for parameter in method.parameters():
                parameter.grad = None
        recorder.label = None
        steps.append(recorder.take_events())
        _name_gradients(steps[-1])
        flops.append(Counter(recorder.flops))
        if number == 2 and abs(flops[1].total() / flops[0].total() - 1) < ALIKE:
            break
    # Every micro-batch costs the same, and the second one meets the gradients of the first.
    times = load.accumulate / min(load.accumulate, PLAYED) / len(flops)
    optimizer_bytes = sum(block.size for block, allocated in steps[0] if allocated and block.label == OPTIMIZER)
    tokens = [
        _tokens(load, recorder, method.backbone, views, device) for views in (load.global_views, load.local_views)
    ]
    return Trace(
        steps,
        {label: round(count * times) for label, count in sum(flops, Counter[str]()).most_common()},
        weights,
        (tokens[0], tokens[1]),
        sum(p.numel() for p in method.backbone.parameters()),
        sum(p.numel() for p in optimized),
        sum(weights.values()) + optimizer_bytes,
    )


def _tokens(
    load: Workload, recorder: Recorder, network: nn.Module, views: tuple[int, int], device: torch.device
) -> int:
    """Tokens of one view; 0 where there is none."""
    if not views[0]:
        return 0
    shape = (1, load.network.channels, *(views[1],) * load.axes)
    with recorder.recording(), torch.no_grad():
        features: Features = network.eval()(recorder.empty(shape, dtype=torch.float32, device=device))
    return features.tokens.shape[1]


def _batches(load: Workload, count: int, recorder: Recorder, device: torch.device) -> Iterator[list[View]]:
    """The views of every micro-batch, as the loop makes them."""
    image = (load.batch, load.network.channels, *load.padded_px)
    for _ in range(count):
        recorder.label = IMAGES
        dtype = torch.uint8 if load.image_item == 1 else torch.float32
        images = recorder.empty(image, dtype=dtype, device=torch.device("cpu"))
        recorder.label = VIEWS
        recorder.empty((_augmentation_bytes(load),), dtype=torch.uint8, device=device)
        items = torch.arange(load.batch)
        roles: list[tuple[Role, tuple[int, int]]] = [("global", load.global_views), ("local", load.local_views)]
        views = [_view(load, recorder, role, side, items, device) for role, (n, side) in roles for _ in range(n)]
        recorder.label = None
        yield views
        del images, views
    recorder.label = OPTIMIZER


def _view(load: Workload, recorder: Recorder, role: Role, side: int, items: torch.Tensor, device: torch.device) -> View:
    shape = (load.batch, load.network.channels, *(side,) * load.axes)
    pixels = recorder.empty(shape, dtype=torch.float32, device=device)
    box = torch.zeros(load.batch, 2 * load.axes, device=device)
    return View(role, pixels, box, (items % 2).to(device), items)


def _augmentation_bytes(load: Workload) -> int:
    """Temporary memory for making the views: of a few images at a time on the CPU, of all of them on a GPU.

    One image with smaller copies below, the positions of pixels, and crops before and after a change.
    """
    channels, axes = load.network.channels, load.axes
    largest = max(count * side**axes for count, side in (load.global_views, load.local_views))
    at_once = load.batch
    if load.device != "cuda":
        at_once = min(load.batch, max(1, CACHE_ELEMENTS // (largest * channels)))
    image = channels * math.prod(load.padded_px)
    return FP32 * at_once * round(2.5 * image + (axes + 3 * channels) * largest)


def _name_gradients(events: Sequence[Event]) -> None:
    """Gradients that outlive the backward pass are those of the weights."""
    alive: set[Block] = set()
    for block, allocated in events:
        (alive.add if allocated else alive.discard)(block)
        if allocated and block.label == OPTIMIZER:
            break
    for block in alive:
        if block.label == IN_FLIGHT:
            block.label = GRADIENTS


# --- price --------------------------------------------------------------------------------------


def price(load: Workload) -> Price:
    """What one optimizer step costs. Raises as ``trace``."""
    return priced(load, trace(load))


def priced(load: Workload, traced: Trace) -> Price:
    """The price of a workload that has been traced."""
    footprint = play(traced.steps)
    memory = Counter(dict(footprint.at_peak)) + Counter(dict(traced.weights))
    if load.device == "cpu":
        memory[FRAGMENTATION] = footprint.heap - footprint.peak
    return Price(
        tokens=traced.tokens,
        parameters=traced.parameters,
        learned=traced.learned,
        flops={label: flops for label, flops in traced.flops.items() if flops},
        memory=dict(memory.most_common()),
        attention=attention_bytes(load),
        state=traced.state,
    )


def attention_bytes(load: Workload) -> int:
    """Bytes of the attention matrices of one layer for a batch of global views, full and written out."""
    network, ability = load.network, load.network.capabilities
    if not ability.has_attention or not ability.patch_px:
        return 0
    arguments = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    heads, prefix = arguments.get("heads", 0), 1 + arguments.get("registers", 0)
    tokens = prefix + (load.global_views[1] // ability.patch_px) ** network.axes
    return load.batch * max(1, load.slices) * heads * tokens**2 * (2 if load.bf16 else 4)


class BatchPrices:
    """Prices of the same workload with other batches, from two traces: every allocation is linear in the batch."""

    def __init__(self, load: Workload):
        self.load = load
        self._traces = (trace(load), trace(load.with_(batch=2 * load.batch)))
        first, second = ([_order(step) for step in t.steps] for t in self._traces)
        self._alike = first == second

    def __call__(self, batch: int) -> Price:
        load = self.load.with_(batch=batch)
        if not self._alike:
            return price(load)
        low, high = self._traces
        excess = batch / self.load.batch - 1
        steps = [_between(a, b, excess) for a, b in zip(low.steps, high.steps, strict=True)]
        flops = {n: max(0, round(f + excess * (high.flops.get(n, 0) - f))) for n, f in low.flops.items()}
        return priced(load, dataclasses.replace(low, steps=steps, flops=flops))


def _order(events: Sequence[Event]) -> list[tuple[int, bool]]:
    """Which block every event is about, by the order in which they are allocated."""
    numbers: dict[Block, int] = {}
    return [(numbers.setdefault(block, len(numbers)), allocated) for block, allocated in events]


def _between(low: Sequence[Event], high: Sequence[Event], excess: float) -> list[Event]:
    """Events with sizes on the line through two traces; ``excess`` 0 gives the first, 1 the second."""
    blocks: dict[Block, Block] = {}
    for (a, allocated), (b, _) in zip(low, high, strict=True):
        if allocated:
            blocks[a] = dataclasses.replace(a, size=max(1, round(a.size + excess * (b.size - a.size))))
    return [(blocks[block], allocated) for block, allocated in low]
