"""What a network costs, by arithmetic on its settings: parameters, floating-point operations. No torch here.

Operations are those of one more image in a batch: two for every multiply-add of a matrix product or a convolution,
padding included, as torch's flop counter has them. Left out is what a batch needs once, whatever its size (turning the
kernels of group convolutions, resizing positions), and what is no product: norms, activations, sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from saccade.errors import ModelError, UsageError
from saccade.models.attention_patterns import computed_pairs, parse_pattern
from saccade.models.backbones.equivariant import EquivariantSettings
from saccade.models.backbones.hvt import HVTSettings
from saccade.models.backbones.resnet import ResNetSettings
from saccade.models.backbones.swin import SwinSettings
from saccade.models.backbones.vit import ViTSettings
from saccade.models.registry import configured, with_width
from saccade.models.settings import ORDER, Settings

By = Literal["params", "flops"]
WIDEST = 8192


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    flops   of the forward pass of one image, two for a multiply-add
    tokens  vectors that the network gives for one image: its last map
    dim     width of each
    """

    parameters: int
    flops: int
    tokens: int
    dim: int


@dataclass(frozen=True)
class Part:
    """Parameters, and operations for one image, of one part of a network. Parts add up; ``*`` repeats one."""

    parameters: int = 0
    flops: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(self.parameters + other.parameters, self.flops + other.flops)

    def __mul__(self, times: int) -> Part:
        return Part(self.parameters * times, self.flops * times)


def _linear(inputs: int, outputs: int, positions: int, *, bias: bool = True) -> Part:
    return Part((inputs + bias) * outputs, 2 * inputs * outputs * positions)


def _conv(inputs: int, outputs: int, kernel: int, side: int, axes: int = 2) -> Part:
    """A convolution without bias whose map has ``side`` positions along each axis, and a norm's factor and offset."""
    weights = inputs * outputs * kernel**axes
    return Part(weights + 2 * outputs, 2 * weights * side**axes)


def _half(side: int) -> int:
    """Side of the map after a stride of 2."""
    return (side + 1) // 2


# --- transformers -------------------------------------------------------------------------------


def _side(settings: ViTSettings | SwinSettings | HVTSettings, unit: int) -> int:
    """Patches along an image of ``size_px``; ModelError when they do not come out even."""
    if settings.size_px % unit:
        raise ModelError(
            f"{settings.name} does not run at this size",
            got=f"{settings.size_px} px",
            expected=f"a multiple of {unit} px",
            hint=f"{max(1, round(settings.size_px / unit)) * unit} px",
        )
    return settings.size_px // settings.patch


def _encoder_layer(dim: int, tokens: int, pairs: int) -> Part:
    """Two norms, attention over ``pairs`` of query and key in every head, and an MLP of four times the width."""
    products = _linear(dim, 3 * dim, tokens) + _linear(dim, dim, tokens)
    mlp = _linear(dim, 4 * dim, tokens) + _linear(4 * dim, dim, tokens)
    scores_and_mix = Part(flops=2 * 2 * dim * pairs)
    return products + mlp + scores_and_mix + Part(parameters=2 * 2 * dim)


def _stem(s: ViTSettings, side: int) -> Part:
    """Pixels to tokens, as in nn/tokens."""
    if s.stem in ("linear", "grid"):
        channels = s.channels - (s.stem == "grid")
        return _linear(channels * s.patch**s.axes, s.dim, side**s.axes)
    steps = s.patch.bit_length() - 1
    found, inputs, map_side = Part(), s.channels, s.size_px
    for step in range(steps):
        width, map_side = max(8, s.dim // 2 ** (steps - 1 - step)), map_side // 2
        found += _conv(inputs, width, 3, map_side, s.axes)
        if s.stem == "stages" and step > 0:
            found += _conv(width, width, 3, map_side, s.axes)
            if inputs != width:
                found += _conv(inputs, width, 1, map_side, s.axes)
        inputs = width
    return found + _linear(s.dim, s.dim, side**s.axes)


def _vit(s: ViTSettings) -> Cost:
    side, prefix, pattern = _side(s, s.unit_px), 1 + s.registers, parse_pattern(s.attention)
    patches, total = side**s.axes, _stem(s, side)
    for index in range(s.depth):
        total += _encoder_layer(s.dim, prefix + patches, computed_pairs(pattern, (side,) * s.axes, prefix, index))
    scales = 2 * s.dim * s.depth if s.layer_scale is not None else 0
    places = {"learned": patches, "factorised": s.axes * side}.get(s.positions, 0)
    if s.positions == "conv":
        total += Part((3**s.axes + 1) * s.dim, 2 * 3**s.axes * s.dim * patches)
    last_norm = 2 * s.dim if s.norm == "pre" else 0
    return Cost(total.parameters + scales + (prefix + places) * s.dim + last_norm, total.flops, patches, s.dim)


def _swin(s: SwinSettings) -> Cost:
    side = _side(s, s.unit_px)
    total = _linear(s.channels * s.patch**2, s.dim, side**2) + Part(parameters=2 * s.dim)
    for stage, (depth, heads) in enumerate(zip(s.depths, s.heads)):
        dim = s.dim * 2**stage
        if stage > 0:
            side //= 2
            total += _linear(2 * dim, dim, side**2, bias=False) + Part(parameters=2 * 2 * dim)
        window = min(s.window, side)
        windows = math.ceil(side / window) ** 2
        layer = _encoder_layer(dim, side**2, windows * window**4)
        biases = Part(parameters=(2 * s.window - 1) ** 2 * heads)
        total += (layer + biases) * depth
    return Cost(total.parameters + 2 * 8 * s.dim, total.flops, side**2, 8 * s.dim)


def _hvt(s: HVTSettings) -> Cost:
    side = _side(s, s.unit_px)
    total = _linear(s.channels * s.patch**s.axes, s.dim, side**s.axes) + Part(side**s.axes * s.dim)
    for index in range(s.depth):
        if index in s.pools:
            side = _half(side)
            total += Part(side**s.axes * s.dim)
        total += _encoder_layer(s.dim, side**s.axes, side ** (2 * s.axes))
    return Cost(total.parameters + 2 * s.dim, total.flops, side**s.axes, s.dim)


# --- convolutional networks ---------------------------------------------------------------------


def _resnet(s: ResNetSettings) -> Cost:
    conv = functools.partial(_conv, axes=s.axes)
    grow, side = 4 if s.bottleneck else 1, s.size_px if s.stem == "cifar" else _half(s.size_px)
    total = conv(s.channels, s.width, 7 if s.stem == "imagenet" else 3, side)
    side, inputs = _half(side) if s.stem == "imagenet" else side, s.width
    for stage, count in enumerate(s.layers):
        width = s.width * 2**stage
        for block in range(count):
            halves = stage > 0 and block == 0
            before, side = side, _half(side) if halves else side
            if s.bottleneck:
                total += conv(inputs, width, 1, before) + conv(width, width, 3, side)
                total += conv(width, grow * width, 1, side)
            else:
                total += conv(inputs, width, 3, side) + conv(width, width, 3, side)
            if halves or inputs != grow * width:
                total += conv(inputs, grow * width, 1, side)
            inputs = grow * width
    return Cost(total.parameters, total.flops, side**s.axes, inputs)


def _group_conv(inputs: int, outputs: int, order: int, kernel: int, side: int) -> Part:
    """From fields to fields: each of ``order`` turned kernels is computed, and only one is a parameter."""
    computed = _conv(order * inputs, order * outputs, kernel, side)
    return Part(inputs * outputs * order * kernel**2 + 2 * outputs, computed.flops)


def _equivariant(s: EquivariantSettings) -> Cost:
    order, side = ORDER[s.group], s.size_px if s.stem == "cifar" else _half(s.size_px)
    kernel, inputs = 7 if s.stem == "imagenet" else 3, s.width // order
    lifted = _conv(s.channels, s.width, kernel, side)
    total = Part((s.channels * kernel**2 + 2) * inputs, lifted.flops)
    side = _half(side) if s.stem == "imagenet" else side
    for stage, count in enumerate(s.layers):
        fields, side = s.width // order * 2**stage, _half(side) if stage > 0 else side
        for _ in range(count):
            total += _group_conv(inputs, fields, order, 3, side) + _group_conv(fields, fields, order, 3, side)
            if inputs != fields:
                total += _group_conv(inputs, fields, order, 1, side)
            inputs = fields
    return Cost(total.parameters, total.flops, side**2, inputs)


# --- by name ------------------------------------------------------------------------------------

FAMILIES: dict[type, Callable[[Any], Cost]] = {
    ViTSettings: _vit,
    SwinSettings: _swin,
    HVTSettings: _hvt,
    ResNetSettings: _resnet,
    EquivariantSettings: _equivariant,
}


def cost(
    name: str,
    *,
    size_px: int,
    channels: int = 3,
    axes: int = 2,
    slices: int = 0,
    options: Mapping[str, object] | None = None,
) -> Cost:
    """What the network of this name costs at this size; the arguments are those of ``backbones.build.build``.

    Raises UsageError for an unknown name or option, ModelError for a size that does not fit.
    """
    settings = configured(name, channels=channels, size_px=size_px, axes=2 if slices else axes, options=options)
    found = cost_of(settings)
    if not slices:
        return found
    # The same network for every slice, and their mean.
    return Cost(found.parameters, slices * found.flops, slices * found.tokens, found.dim)


def cost_of(settings: Settings) -> Cost:
    """What a network with these settings costs, at the size they are made for."""
    return FAMILIES[type(settings)](settings)


def matched(name: str, target: int, by: By, *, size_px: int, channels: int = 3) -> str:
    """The network of this name with the width, as ``_wN``, whose parameters or operations are nearest to ``target``.

    Only the width changes; a width that the name has already is replaced. Raises UsageError for a target beyond
    every width, and what ``cost`` raises.
    """
    below, difference = name, math.inf
    for width in _widths(configured(name, channels=channels, size_px=size_px)):
        wider = with_width(name, width)
        found = cost(wider, size_px=size_px, channels=channels)
        figure = found.parameters if by == "params" else found.flops
        if abs(figure - target) > difference:
            return below
        below, difference = wider, abs(figure - target)
    raise UsageError(f"no width of {name} costs that much", got=f"{target:,} {by}", expected=f"at most {figure:,}")


def _widths(settings: Settings) -> Iterator[int]:
    """Widths worth trying, in steps of about a thirtieth of the width, so that a cost is met within some per cent.

    Steps are powers of two times a unit, because such matrix products run fast. The orientations of a group divide a
    width: their number is its unit.
    """
    unit = settings.capabilities.width_step
    width = step = unit
    while width <= WIDEST:
        yield width
        step = 2 * step if width >= 32 * step else step
        width += step
