"""Swin and HVT on a tape. Written as backbones/hierarchical is."""

from __future__ import annotations

import math

from saccade.cost import ops
from saccade.cost.attention_ops import MATRICES, QKV, attend
from saccade.cost.autograd_tape import FP32, Shape, Tape, Tensor
from saccade.cost.vit import ALL, PATCHES, PATH, BlockPlan, Call, Weights, block, mlp, patch_projection, positions
from saccade.models.backbones.hvt import HVTSettings
from saccade.models.backbones.swin import SwinSettings


def swin(tape: Tape, w: Weights, s: SwinSettings, pixels: Tensor, call: Call = ALL) -> tuple[Tensor, Tensor]:
    """The image's vector [B 8D] and its tokens [B N 8D]."""
    grid = (pixels.shape[2] // s.patch, pixels.shape[3] // s.patch)
    x = patch_projection(tape, w, pixels, s.dim, s.patch)
    x = ops.layer_norm(tape, x, w("patch norm", 2 * s.dim), PATCHES)
    number, last = 0, max(1, sum(s.depths) - 1)
    for stage, (depth, heads) in enumerate(zip(s.depths, s.heads)):
        if stage:
            grid = (grid[0] // 2, grid[1] // 2)
            x = _merged(tape, w, f"merge{stage}", x, grid)
        for index in range(depth):
            name, rate = f"stage{stage}.{index}", s.drop_path * number / last
            number += 1

            def run(
                y: Tensor, name: str = name, rate: float = rate, odd: bool = index % 2 == 1, at: Shape = (heads, *grid)
            ) -> Tensor:
                return _swin_block(tape, w, name, y, at[1:], at[0], s.window, odd, rate)

            x = tape.once_more(run, x) if call.recompute else run(x)
    x = ops.layer_norm(tape, x, w("norm", 2 * x.shape[-1]), PATH)
    return ops.mean(tape, x, (x.shape[0], x.shape[-1]), PATH), x


def _merged(tape: Tape, w: Weights, name: str, x: Tensor, grid: Shape) -> Tensor:
    batch, _, dim = x.shape
    x = ops.copied(tape, x, (batch, math.prod(grid), 4 * dim), PATH)
    x = ops.layer_norm(tape, x, w(f"{name}.norm", 8 * dim), PATH)
    return ops.linear(tape, x, w(f"{name}.w", 8 * dim * dim), 2 * dim, PATH)


def _swin_block(
    tape: Tape, w: Weights, name: str, x: Tensor, grid: Shape, heads: int, window: int, odd: bool, rate: float
) -> Tensor:
    dim = x.shape[-1]
    y = ops.layer_norm(tape, x, w(f"{name}.norm1", 2 * dim), PATH)
    y = _window_attention(tape, w, f"{name}.attn", y, grid, heads, window, odd)
    x = ops.add(tape, x, ops.drop_path(tape, y, rate, PATH), PATH)
    y = mlp(tape, w, f"{name}.mlp", ops.layer_norm(tape, x, w(f"{name}.norm2", 2 * dim), PATH))
    return ops.add(tape, x, ops.drop_path(tape, y, rate, PATH), PATH)


def _window_attention(
    tape: Tape, w: Weights, name: str, x: Tensor, grid: Shape, heads: int, window: int, odd: bool
) -> Tensor:
    batch, count, dim = x.shape
    sizes = [min(window, n) for n in grid]
    shifted = [odd and n > window for n in grid]
    tiles = [math.ceil(n / size) for n, size in zip(grid, sizes)]
    padded = math.prod(t * size for t, size in zip(tiles, sizes))
    if padded == count and any(shifted):
        x = ops.copied(tape, x, x.shape, PATH)  # rolled
    qkv = ops.linear(tape, x, w(f"{name}.qkv", 3 * dim * dim), 3 * dim, QKV, bias=w(f"{name}.qkv.b", 3 * dim))
    if padded != count:
        qkv = tape.apply(QKV, [qkv], (batch, padded, 3 * dim), qkv.item, gives=[qkv.bytes])
        qkv = ops.copied(tape, qkv, qkv.shape, QKV) if any(shifted) else qkv
    windows, inside = math.prod(tiles), math.prod(sizes)
    alike = padded == count and not any(shifted)
    lead = (batch * windows, heads) if alike else (batch, windows * heads)
    table = w(f"{name}.bias", (2 * window - 1) ** 2 * heads)
    bias = tape.apply(MATRICES, [table], (heads, inside, inside), FP32, gives=[FP32 * table.size], extra=0)
    if not alike:
        bias = tape.apply(MATRICES, [bias], (windows * heads, inside, inside), FP32, gives=[bias.bytes])
    bias = ops.cast(tape, bias, qkv.item, MATRICES)
    parts = ops.split(tape, ops.view(tape, qkv, qkv.shape), [(*lead, inside, dim // heads)] * 3)
    query, key, value = (ops.copied(tape, part, part.shape, QKV) for part in parts)
    mixed = attend(tape, query, key, value, bias=bias)
    mixed = ops.copied(tape, mixed, (batch, padded, dim), QKV)
    if any(shifted):
        mixed = ops.copied(tape, mixed, mixed.shape, QKV)
    if padded != count:
        mixed = ops.part(tape, mixed, (batch, count, dim))
        mixed = ops.copied(tape, mixed, mixed.shape, QKV)
    return ops.linear(tape, mixed, w(f"{name}.proj", dim * dim), dim, PATH, bias=w(f"{name}.proj.b", dim))


def hvt(tape: Tape, w: Weights, s: HVTSettings, pixels: Tensor, call: Call = ALL) -> tuple[Tensor, Tensor]:
    """The image's vector [B D] and its last tokens [B M D]."""
    grid = tuple(n // s.patch for n in pixels.shape[2:])
    made_for = (s.size_px // s.patch,) * s.axes
    x = patch_projection(tape, w, pixels, s.dim, s.patch)
    x = positions(tape, w, "positions0", s, x, grid, made_for)
    for index in range(s.depth):
        if index in s.pools:
            grid, made_for = (tuple((n + 1) // 2 for n in g) for g in (grid, made_for))
            shape = (x.shape[0], math.prod(grid), s.dim)
            # Maximum pooling keeps its input and where each maximum lay.
            x = tape.apply(PATH, [x], shape, x.item, gives=[x.bytes], saves=[x.storage], extra=8 * math.prod(shape))
            x = positions(tape, w, f"positions{len(grid)}.{index}", s, x, grid, made_for)
        plan = BlockPlan(s.heads, drop_path=s.drop_path * index / max(1, s.depth - 1))

        def run(y: Tensor, index: int = index, plan: BlockPlan = plan) -> Tensor:
            return block(tape, w, f"block{index}", y, plan)

        x = tape.once_more(run, x) if call.recompute else run(x)
    x = ops.layer_norm(tape, x, w("norm", 2 * s.dim), PATH)
    return ops.mean(tape, x, (x.shape[0], s.dim), PATH), x
