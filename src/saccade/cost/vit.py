"""Blocks and ViT on a tape, as nn/blocks and backbones/vit are written; Swin and HVT are in pricing/hierarchies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saccade.cost import ops
from saccade.cost.attention_ops import QKV, attend, attend_local, written_out
from saccade.cost.autograd_tape import BF16, FP32, Parameter, Shape, Tape, Tensor
from saccade.models.attention_patterns import FULL, Pattern, parse_pattern
from saccade.models.backbones.hvt import HVTSettings
from saccade.models.backbones.vit import ViTSettings

MLP = "hidden layers (MLP)"
PATH = "residual path and norms"
PATCHES = "patches"
MAPS = "feature maps"


class Weights:
    """The parameters of one network, made when first asked for; ``trains``: gradients are wanted."""

    def __init__(self, tape: Tape, *, trains: bool):
        self.tape, self.trains = tape, trains
        self.found: dict[str, Parameter] = {}

    def __call__(self, name: str, size: int) -> Parameter:
        if name not in self.found:
            self.found[name] = self.tape.parameter(size, trains=self.trains)
        return self.found[name]


@dataclass(frozen=True)
class Call:
    """One call of a network. kept: patches that the encoder sees (0: all); hidden: a token stands for some of them."""

    kept: int = 0
    hidden: bool = False
    recompute: bool = False


ALL = Call()

# --- blocks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockPlan:
    """What one block needs to know; see nn/blocks.Block."""

    heads: int
    norm: str = "pre"
    layer_scale: bool = False
    drop_path: float = 0.0
    pattern: Pattern = FULL
    layer: int = 0
    prefix: int = 0
    grid: Shape = ()
    rotary: bool = False
    masked: bool = False  # some tokens stand for nothing, and a mask hides them


def block(tape: Tape, w: Weights, name: str, x: Tensor, p: BlockPlan) -> Tensor:
    """[B N D] to [B N D]."""
    dim = x.shape[-1]

    def norm(which: str, y: Tensor) -> Tensor:
        return ops.layer_norm(tape, y, w(f"{name}.{which}", 2 * dim), PATH)

    def branch(y: Tensor, which: str) -> Tensor:
        if p.layer_scale:
            y = ops.times_weights(tape, y, w(f"{name}.{which}", dim), PATH)
        return ops.drop_path(tape, y, p.drop_path, PATH)

    if p.norm == "pre":
        x = ops.add(tape, x, branch(attention(tape, w, f"{name}.attn", norm("norm1", x), p), "ls1"), PATH)
        return ops.add(tape, x, branch(mlp(tape, w, f"{name}.mlp", norm("norm2", x)), "ls2"), PATH)
    x = norm("norm1", ops.add(tape, x, branch(attention(tape, w, f"{name}.attn", x, p), "ls1"), PATH))
    return norm("norm2", ops.add(tape, x, branch(mlp(tape, w, f"{name}.mlp", x), "ls2"), PATH))


def attention(tape: Tape, w: Weights, name: str, tokens: Tensor, p: BlockPlan) -> Tensor:
    batch, count, dim = tokens.shape
    shape = (batch, p.heads, count, dim // p.heads)
    qkv = ops.linear(tape, tokens, w(f"{name}.qkv", 3 * dim * dim), 3 * dim, QKV, bias=w(f"{name}.qkv.b", 3 * dim))
    query, key, value = ops.three(tape, qkv, shape)
    if p.rotary:
        query, key = _rotated(tape, query), _rotated(tape, key)
    if p.pattern.kind == "full":
        mixed = attend(tape, query, key, value, mask=batch * count if p.masked else 0)
    else:
        mixed = attend_local(tape, query, key, value, pattern=p.pattern, grid=p.grid, prefix=p.prefix, layer=p.layer)
    # The fused kernel answers in the order of its queries: as the tokens lie, unless turning has put heads first.
    if written_out(tape, query, count) or p.pattern.kind != "full" or p.rotary:
        flat = ops.copied(tape, mixed, (batch, count, dim), QKV)
    else:
        flat = ops.view(tape, mixed, (batch, count, dim))
    del mixed
    return ops.linear(tape, flat, w(f"{name}.proj", dim * dim), dim, PATH, bias=w(f"{name}.proj.b", dim))


def _rotated(tape: Tape, x: Tensor) -> Tensor:
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = ops.part(tape, x, half), ops.part(tape, x, half)

    def turned(a: Tensor, b: Tensor) -> Tensor:
        products = [tape.apply(QKV, [t], half, FP32, gives=[t.bytes]) for t in (a, b)]
        return ops.add(tape, products[0], products[1], QKV)

    found = ops.joined(tape, [turned(first, second), turned(second, first)], x.shape, FP32, QKV)
    return ops.cast(tape, found, x.item, QKV)


def mlp(tape: Tape, w: Weights, name: str, x: Tensor) -> Tensor:
    dim = x.shape[-1]
    wide = ops.linear(tape, x, w(f"{name}.1", 4 * dim * dim), 4 * dim, MLP, bias=w(f"{name}.1.b", 4 * dim))
    active = ops.gelu(tape, wide, MLP)
    del wide
    return ops.linear(tape, active, w(f"{name}.2", 4 * dim * dim), dim, PATH, bias=w(f"{name}.2.b", dim))


# --- networks ----------------------------------------------------------------------------------


def patch_projection(tape: Tape, w: Weights, pixels: Tensor, dim: int, patch: int, name: str = "patch") -> Tensor:
    """[B C ...] to [B N D]: patches in rows of their own, times one matrix."""
    batch, channels, *size = pixels.shape
    count, inputs = math.prod(n // patch for n in size), channels * patch ** len(size)
    patches = ops.copied(tape, pixels, (batch, count, inputs), PATCHES)
    del pixels
    return ops.linear(tape, patches, w(name, inputs * dim), dim, PATCHES, bias=w(f"{name}.b", dim))


def _stem(tape: Tape, w: Weights, s: ViTSettings, pixels: Tensor) -> Tensor:
    """A convolutional stem or residual stages, then a projection of every place: [B C ...] to [B N D]."""
    steps, axes = s.patch.bit_length() - 1, len(pixels.shape) - 2
    x = ops.copied(tape, pixels, pixels.shape, MAPS) if s.channels > 1 else pixels
    del pixels
    batch, inputs, *size = x.shape
    for step in range(steps):
        width, size = max(8, s.dim // 2 ** (steps - 1 - step)), [(n + 1) // 2 for n in size]
        shape = (batch, width, *size)

        def conv(key: str, y: Tensor, kernel: int, shape: Shape = shape, step: int = step) -> Tensor:
            taps = y.shape[1] * kernel**axes
            return ops.convolution(tape, y, w(f"stem{step}.{key}", taps * shape[1]), shape, MAPS, per_output=taps)

        def norm(key: str, y: Tensor, step: int = step) -> Tensor:
            kind = ops.group_norm if s.stem == "conv" else ops.batch_norm
            return kind(tape, y, w(f"stem{step}.{key}", 2 * y.shape[1]), MAPS)

        if s.stem == "conv" or step == 0:
            x = ops.relu(tape, norm("n1", conv("c1", x, 3)), MAPS)
        else:
            kept = ops.part(tape, x, (batch, inputs, *size))
            if inputs != width:
                kept = norm("ns", conv("cs", kept, 1))
            inner = ops.relu(tape, norm("n1", conv("c1", x, 3)), MAPS)
            x = ops.add(tape, kept, norm("n2", conv("c2", inner, 3)), MAPS)
            del kept, inner
        inputs = width
    return patch_projection(tape, w, x, s.dim, 1)


def vit(tape: Tape, w: Weights, s: ViTSettings, pixels: Tensor, call: Call = ALL) -> tuple[Tensor, Tensor]:
    """The image's vector [B D] and its tokens [B N D]."""
    x, grid = _enter(tape, w, s, pixels, call)
    prefix, rates = 1 + s.registers, s.drop_path / max(1, s.depth - 1)
    pattern = parse_pattern(s.attention)
    for index in range(s.depth):
        plan = BlockPlan(
            s.heads,
            s.norm,
            layer_scale=s.layer_scale is not None,
            drop_path=rates * index,
            pattern=pattern,
            layer=index,
            prefix=prefix,
            grid=grid,
            rotary=s.positions == "rotary",
            masked=s.stem == "grid",
        )
        x = _through(tape, w, f"block{index}", x, plan, recompute=call.recompute)
    if s.norm == "pre":
        x = ops.layer_norm(tape, x, w("norm", 2 * s.dim), PATH)
    batch, count, dim = x.shape
    tokens = ops.part(tape, x, (batch, count - prefix, dim))
    if s.stem == "grid":
        tokens = ops.scaled(tape, tokens, PATH)
    if s.pool == "mean":
        return ops.mean(tape, tokens, (batch, dim), PATH), tokens
    return ops.part(tape, x, (batch, dim)), tokens


def _through(tape: Tape, w: Weights, name: str, x: Tensor, plan: BlockPlan, *, recompute: bool) -> Tensor:
    def run(y: Tensor) -> Tensor:
        return block(tape, w, name, y, plan)

    return tape.once_more(run, x) if recompute else run(x)


def _enter(tape: Tape, w: Weights, s: ViTSettings, pixels: Tensor, call: Call) -> tuple[Tensor, Shape]:
    grid = tuple(n // s.patch for n in pixels.shape[2:])
    batch, count = pixels.shape[0], math.prod(grid)
    if s.stem in ("linear", "grid"):
        channels = pixels.shape[1] - (s.stem == "grid")
        x = patch_projection(tape, w, ops.view(tape, pixels, (batch, channels, *pixels.shape[2:])), s.dim, s.patch)
    else:
        x = _stem(tape, w, s, pixels)
    if call.hidden:
        token = w("hidden token", s.dim)
        x = tape.apply(PATH, [x, token], x.shape, x.item, gives=[x.bytes, FP32 * s.dim], extra=batch * count)
    x = positions(tape, w, "positions", s, x, grid)
    if call.kept:
        x = ops.chosen(tape, x, (batch, call.kept, s.dim), PATH, index=batch * call.kept)
    prefix = 1 + s.registers
    first = w("prefix", prefix * s.dim)
    return ops.joined(tape, [first, x], (batch, prefix + x.shape[1], s.dim), FP32, PATH), grid


def positions(
    tape: Tape, w: Weights, name: str, s: ViTSettings | HVTSettings, x: Tensor, grid: Shape, made_for: Shape = ()
) -> Tensor:
    """Tokens that know where they are."""
    kind = getattr(s, "positions", "learned")
    table = math.prod(grid) * s.dim
    own = made_for or (s.size_px // s.patch,) * s.axes
    if kind in ("learned", "factorised"):
        size = (math.prod(own) if kind == "learned" else sum(own)) * s.dim
        p = w(name, size)
        if own != grid or kind == "factorised":
            held = FP32 * (table + size)
            return tape.apply(
                PATH,
                [x, p],
                x.shape,
                FP32,
                gives=[x.bytes if x.item == BF16 else None, FP32 * size],
                scratch=(held, held),
            )
        return ops.add_weights(tape, x, p, PATH)
    if kind == "conv":
        kernel = w(name, (3**s.axes + 1) * s.dim)
        near = ops.convolution(tape, x, kernel, x.shape, PATH, per_output=3**s.axes)
        return ops.add(tape, x, near, PATH)
    if kind == "sincos":
        # A table of the tokens' own number type: the sum stays in it.
        return tape.apply(PATH, [x], x.shape, x.item, gives=[None], scratch=(FP32 * table, 0))
    return x
