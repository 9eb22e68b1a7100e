"""ResNets, plain and equivariant, on a tape. Written as backbones/cnn and backbones/equivariant are."""

from __future__ import annotations

import math

from saccade.cost import ops
from saccade.cost.autograd_tape import FP32, Parameter, Shape, Tape, Tensor
from saccade.cost.vit import ALL, MAPS, Call, Weights
from saccade.models.backbones.equivariant import EquivariantSettings
from saccade.models.backbones.resnet import ResNetSettings
from saccade.models.settings import ORDER


def _half(size: Shape) -> Shape:
    return tuple((n + 1) // 2 for n in size)


def _conv(tape: Tape, w: Weights, name: str, x: Tensor, outputs: int, kernel: int, size: Shape) -> Tensor:
    """A convolution and its batch norm."""
    taps = x.shape[1] * kernel ** len(size)
    p = w(f"{name}.w", taps * outputs)
    x = ops.convolution(tape, x, p, (x.shape[0], outputs, *size), MAPS, per_output=taps)
    return ops.batch_norm(tape, x, w(f"{name}.n", 2 * outputs), MAPS)


def _tokens(tape: Tape, x: Tensor) -> tuple[Tensor, Tensor]:
    batch, width, *size = x.shape
    tokens = ops.view(tape, x, (batch, math.prod(size), width))
    return ops.mean(tape, tokens, (batch, width), MAPS), tokens


def resnet(tape: Tape, w: Weights, s: ResNetSettings, pixels: Tensor, call: Call = ALL) -> tuple[Tensor, Tensor]:
    """The image's vector [B D] and the last map as tokens [B N D]."""
    size = pixels.shape[2:] if s.stem == "cifar" else _half(pixels.shape[2:])
    x = ops.copied(tape, pixels, pixels.shape, MAPS) if s.channels > 1 else pixels
    x = ops.relu(tape, _conv(tape, w, "stem", x, s.width, 7 if s.stem == "imagenet" else 3, size), MAPS)
    if s.stem == "imagenet":
        size = _half(size)
        shape = (x.shape[0], s.width, *size)
        x = tape.apply(MAPS, [x], shape, x.item, gives=[x.bytes], saves=[x.storage], extra=8 * math.prod(shape))
    for stage, count in enumerate(s.layers):
        for index in range(count):
            halves = stage > 0 and index == 0
            size = _half(size) if halves else size
            x = _residual(tape, w, f"{stage}.{index}", x, s.width * 2**stage, size, halves, s.bottleneck)
    return _tokens(tape, x)


def _residual(
    tape: Tape, w: Weights, name: str, x: Tensor, width: int, size: Shape, halves: bool, bottleneck: bool
) -> Tensor:
    outputs, before = width * (4 if bottleneck else 1), x.shape[2:]
    kept = x
    if halves or x.shape[1] != outputs:
        kept = ops.part(tape, x, (x.shape[0], x.shape[1], *size)) if halves else x
        kept = _conv(tape, w, f"{name}.s", kept, outputs, 1, size)
    if bottleneck:
        x = ops.relu(tape, _conv(tape, w, f"{name}.1", x, width, 1, before), MAPS)
        x = ops.relu(tape, _conv(tape, w, f"{name}.2", x, width, 3, size), MAPS)
        x = _conv(tape, w, f"{name}.3", x, outputs, 1, size)
    else:
        x = ops.relu(tape, _conv(tape, w, f"{name}.1", x, width, 3, size), MAPS)
        x = _conv(tape, w, f"{name}.2", x, width, 3, size)
    return ops.relu(tape, ops.add(tape, x, kept, MAPS), MAPS)


# --- equivariant --------------------------------------------------------------------------------


def _group_conv(
    tape: Tape, w: Weights, name: str, x: Tensor, fields: int, order: int, kernel: int, size: Shape, *, lifts: bool
) -> Tensor:
    """One kernel a field is a parameter; its turned copies are made by one product and convolved once."""
    inputs = x.shape[1] if lifts else x.shape[1] // order
    own = w(f"{name}.w", fields * inputs * (1 if lifts else order) * kernel**2)
    copies = fields * order * x.shape[1] * kernel**2
    # [F I, H P] times [H P, G K P]
    inner = kernel**2 if lifts else order * kernel**2
    with tape.products_in(tape.bf16):
        made = ops.linear(
            tape,
            _as_rows(tape, own, inner),
            Parameter(inner * copies * inner // own.size, None),
            copies * inner // own.size,
            MAPS,
        )
    kernels = ops.copied(tape, made, (copies,), MAPS)
    outputs, taps = fields * order, x.shape[1] * kernel**2
    x = ops.cast(tape, x, made.item, MAPS)
    flops = 2 * x.shape[0] * outputs * math.prod(size) * taps
    shape = (x.shape[0], outputs, *size)
    back = flops * ((x.node is not None) + (own.node is not None))
    x = tape.apply(
        MAPS,
        [x, kernels],
        shape,
        x.item,
        gives=[x.bytes, kernels.bytes],
        saves=[x.storage, kernels.storage],
        flops=flops,
        back=back,
        scratch=(2 * kernels.bytes, 3 * kernels.bytes),
    )
    return ops.batch_norm(tape, x, w(f"{name}.n", 2 * fields), MAPS)


def _as_rows(tape: Tape, p: Parameter, inner: int) -> Tensor:
    """The weights as a matrix: a view of them, whose memory is entered already."""
    flat = tape.tensor((0,), MAPS)
    return Tensor((p.size // inner, inner), FP32, flat.storage, p.node)


def equivariant(
    tape: Tape, w: Weights, s: EquivariantSettings, pixels: Tensor, call: Call = ALL
) -> tuple[Tensor, Tensor]:
    """The image's vector [B F] and the last map, the largest over orientations, as tokens [B N F]."""
    order, size = ORDER[s.group], pixels.shape[2:]
    x = ops.copied(tape, pixels, pixels.shape, MAPS) if s.channels > 1 else pixels
    if s.stem != "cifar":
        size = _half(size)
    kernel, fields = 7 if s.stem == "imagenet" else 3, s.width // order
    x = ops.relu(tape, _group_conv(tape, w, "lift", x, fields, order, kernel, size, lifts=True), MAPS)
    if s.stem == "imagenet":
        size = _half(size)
        shape = (x.shape[0], x.shape[1], *size)
        x = tape.apply(MAPS, [x], shape, x.item, gives=[x.bytes], saves=[x.storage], extra=8 * math.prod(shape))
    for stage, count in enumerate(s.layers):
        for index in range(count):
            halves, own = stage > 0 and index == 0, fields * 2**stage
            if halves:
                size = _half(size)
                shape = (x.shape[0], x.shape[1], *size)
                x = tape.apply(MAPS, [x], shape, x.item, gives=[x.bytes], saves=[x.storage])
            x = _group_block(tape, w, f"{stage}.{index}", x, own, order, size)
    found = tape.apply(
        MAPS,
        [x],
        (x.shape[0], x.shape[1] // order, *size),
        x.item,
        gives=[x.bytes],
        saves=[x.storage],
        keeps_result=True,
    )
    return _tokens(tape, found)


def _group_block(tape: Tape, w: Weights, name: str, x: Tensor, fields: int, order: int, size: Shape) -> Tensor:
    kept = x
    if x.shape[1] != fields * order:
        kept = _group_conv(tape, w, f"{name}.s", x, fields, order, 1, size, lifts=False)
    x = ops.relu(tape, _group_conv(tape, w, f"{name}.1", x, fields, order, 3, size, lifts=False), MAPS)
    x = _group_conv(tape, w, f"{name}.2", x, fields, order, 3, size, lifts=False)
    return ops.relu(tape, ops.add(tape, x, kept, MAPS), MAPS)
