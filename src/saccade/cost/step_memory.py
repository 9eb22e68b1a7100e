"""The price of a training step: bytes by name at the fullest moment, operations by name. Arithmetic, no torch.

A step is played on a tape (see ``tape``): views, the teacher's and the student's passes, loss, gradients; weights and
the optimiser's state lie there all the time. What a process needs before it has any network is not in here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from saccade.cost import ops
from saccade.cost.autograd_tape import FP32, Shape, Tape, Tensor
from saccade.cost.flops import FAMILIES
from saccade.cost.method_steps import STEPS, TAUGHT, VIEWS, Stage
from saccade.cost.resnet import equivariant, resnet
from saccade.cost.swin_hvt import hvt, swin
from saccade.cost.vit import PATH, Call, Weights, vit
from saccade.models.backbones.equivariant import EquivariantSettings
from saccade.models.backbones.hvt import HVTSettings
from saccade.models.backbones.resnet import ResNetSettings
from saccade.models.backbones.swin import SwinSettings
from saccade.models.backbones.vit import ViTSettings
from saccade.models.settings import Settings

NETWORKS: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {
    ViTSettings: vit,
    SwinSettings: swin,
    HVTSettings: hvt,
    ResNetSettings: resnet,
    EquivariantSettings: equivariant,
}
WEIGHTS, TEACHER, OPTIMISER, IMAGES = "weights", "weights of the teacher", "optimiser (two moments)", "images"
GAPS = "gaps in the heap"
STEPS_PLAYED = 3
CACHE_ELEMENTS = 2**20  # augment/views: numbers of one role that the CPU works on at once


@dataclass(frozen=True)
class Workload:
    """Everything that the price of one optimiser step depends on.

    network     settings of the backbone, with its options and the size it is made for
    config      settings of the method, without Nones
    views       (number, side in px) of global and of local views
    batch       images of a micro-batch on one process; ``accumulate`` of them make a step
    explicit    attention written out (True), fused (False), as nn/attention decides (None)
    recompute   activation checkpointing      slices   2D views that stand for one volume; 0: none
    image_px    side of the decoded images, of ``image_item`` bytes a number
    """

    network: Settings
    method: str
    config: Mapping[str, Any]
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
    axes: int = 2

    def with_(self, **changes: Any) -> Workload:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Price:
    """What a workload costs.

    tokens       of one global and of one local view (0: there is none)
    parameters   of the backbone; ``learned`` of all that the optimiser moves
    flops        of one optimiser step by name; two for a multiply-add, as torch counts them
    memory       bytes by name at the fullest moment, the largest first
    attention    bytes of the attention matrices of one layer of the student's global views, if they were written out
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
        """Bytes beyond the bare process."""
        return sum(self.memory.values())

    @property
    def dominating(self) -> str:
        """The largest name; gaps are what the others leave behind."""
        return next((name for name in self.memory if name != GAPS), "")


def price(load: Workload) -> Price:
    """Play some steps: the optimiser's state is made after the first one and lies in the way of the next.

    Raises what ``cost`` raises for a size that does not fit.
    """
    counted = FAMILIES[type(load.network)](load.network)
    tape = Tape(bf16=load.bf16, device=load.device, explicit=load.explicit)
    parts = {
        name: Weights(tape, trains=name in ("network", "heads")) for name in ("network", "heads", "still", "taught")
    }
    moments: list[Tensor] = []
    flops: dict[str, int] = {}
    for step in range(STEPS_PLAYED):
        learned = [p for name in ("network", "heads") for p in parts[name].found.values()]
        for p in learned:
            assert p.node is not None
            p.node.grad = None
        _step(load, tape, parts)
        if step == 0:
            flops = dict(tape.flops.most_common())
            learned = [p for name in ("network", "heads") for p in parts[name].found.values()]
            moments = [tape.tensor((p.size,), OPTIMISER) for p in learned for _ in range(2)]
    size = {name: sum(p.size for p in w.found.values()) for name, w in parts.items()}
    count, still = size["network"] + size["heads"], size["still"] + size["taught"]
    memory = tape.at_peak | {WEIGHTS: FP32 * count}
    memory |= {TEACHER if load.method in TAUGHT else WEIGHTS: FP32 * (still or count)}
    if load.device == "cpu":
        memory[GAPS] = tape.heap.top - tape.peak
    del moments
    return Price(
        tokens=(_tokens(load, load.global_views), _tokens(load, load.local_views)),
        parameters=counted.parameters,
        learned=count,
        flops={name: number for name, number in flops.items() if number},
        memory=dict(sorted(((n, b) for n, b in memory.items() if b > 0), key=lambda item: -item[1])),
        attention=_matrices(load),
        state=FP32 * (3 * count + still),
    )


def _step(load: Workload, tape: Tape, parts: Mapping[str, Weights]) -> None:
    """One optimiser step: the images, then forward and backward for every micro-batch."""
    rests = load.method == "supervised" and bool(load.config.get("frozen"))
    student = _network(load, tape, parts["still" if rests else "network"])
    teacher = _network(load, tape, parts["still"])
    patch = load.network.capabilities.patch_px or load.network.unit_px
    grid = (load.global_views[1] // patch,) * load.axes
    views: list[Tensor] = []
    for _ in range(load.accumulate):
        batch = tape.tensor((load.batch, load.network.channels, *_image_size(load)), IMAGES, load.image_item)
        views = _views(load, tape)
        stage = Stage(
            tape,
            student,
            teacher,
            parts["heads"],
            parts["taught"],
            views,
            load.global_views[0],
            grid,
            patch,
            load.config,
        )
        loss = STEPS[load.method](stage)
        tape.forget_copies()
        tape.backward(loss)
        del loss, stage, batch
        tape.heap.free_pieces()


def _network(load: Workload, tape: Tape, weights: Weights) -> Callable[[Tensor, Call], tuple[Tensor, Tensor]]:
    play, frozen = NETWORKS[type(load.network)], not weights.trains

    def call(pixels: Tensor, how: Call) -> tuple[Tensor, Tensor]:
        how = dataclasses.replace(how, recompute=load.recompute and not frozen)
        if not load.slices:
            return play(tape, weights, load.network, pixels, how)
        count, channels, _, *plane = pixels.shape
        rows = load.slices * count
        planes = tape.tensor((rows, channels, *plane), VIEWS)
        tape.brief(planes.bytes)  # the slices in their old order
        vectors, tokens = play(tape, weights, load.network, planes, how)
        vectors = ops.mean(tape, vectors, (count, vectors.shape[1]), PATH)
        return vectors, ops.view(tape, tokens, (count, load.slices * tokens.shape[1], tokens.shape[2]))

    def still(pixels: Tensor, how: Call) -> tuple[Tensor, Tensor]:
        with tape.still():
            return call(pixels, how)

    return still if frozen else call


def _image_size(load: Workload) -> Shape:
    return (load.image_px or load.global_views[1],) * load.axes


def _views(load: Workload, tape: Tape) -> list[Tensor]:
    """All views of a batch; making them takes a few images at a time on the CPU, all at once on a GPU."""
    made = []
    channels = load.network.channels
    for count, side in (load.global_views, load.local_views):
        made += [tape.tensor((load.batch, channels, *(side,) * load.axes), VIEWS) for _ in range(count)]
    largest = max(
        load.global_views[0] * load.global_views[1] ** load.axes, load.local_views[0] * load.local_views[1] ** load.axes
    )
    once = load.batch if load.device == "cuda" else min(load.batch, max(1, CACHE_ELEMENTS // (largest * channels)))
    image = channels * math.prod(_image_size(load))
    # One picture with smaller copies below, the places of pixels, and crops before and after a change.
    tape.brief(FP32 * once * round(2.5 * image + (load.axes + 3 * channels) * largest))
    return made


def _tokens(load: Workload, views: tuple[int, int]) -> int:
    if not views[0]:
        return 0
    network = load.network
    if network.capabilities.has_attention:
        return (views[1] // network.capabilities.patch_px) ** network.axes * max(1, load.slices)
    return FAMILIES[type(network)](dataclasses.replace(network, size_px=views[1])).tokens * max(1, load.slices)


def _matrices(load: Workload) -> int:
    """Bytes of every attention matrix of one layer over one global view of the batch, were it full and written out."""
    s = load.network
    if not isinstance(s, ViTSettings):
        return 0
    tokens = 1 + s.registers + (load.global_views[1] // s.patch) ** s.axes
    return load.batch * max(1, load.slices) * s.heads * tokens**2 * (2 if load.bf16 else 4)
