"""Transformers on a tape: ViT with every kind of attention, Swin, HVT. Written as backbones/ and nn/ are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saccade.architectures import HVTSettings, ViTSettings
from saccade.pricing import layers
from saccade.pricing.tape import BF16, FP32, Parameter, Shape, Tape, Tensor
from saccade.sparsity import FULL, Pattern, parse_pattern, parts

# nn/attention: up to so many keys the attention is written out on the CPU.
EXPLICIT_TOKENS_BF16 = 512
EXPLICIT_TOKENS_FP32 = 192

MATRICES = "attention matrices"
QKV = "queries, keys, values"
MLP = "hidden layers (MLP)"
PATH = "residual path and norms"
PATCHES = "patches"
MAPS = "feature maps"
TABLES = "attention tables"


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

# --- attention ---------------------------------------------------------------------------------


def written_out(tape: Tape, query: Tensor, keys: int) -> bool:
    """Whether attention takes the explicit path, which keeps its matrices."""
    if tape.explicit is not None:
        return tape.explicit
    if tape.device != "cpu":
        return False
    if query.item == BF16:
        return keys <= EXPLICIT_TOKENS_BF16
    return query.node is not None and keys <= EXPLICIT_TOKENS_FP32


def attend(tape: Tape, q: Tensor, k: Tensor, v: Tensor, *, mask: int = 0, bias: Tensor | None = None) -> Tensor:
    """[L H N Dk] and [L H M Dk] to [L H N Dk]. mask: elements of a boolean one; bias: added to the scores."""
    if written_out(tape, q, k.shape[2]):
        return _explicit(tape, q, k, v, mask, bias)
    return _fused(tape, q, k, v, mask, bias)


def _explicit(tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: int, bias: Tensor | None) -> Tensor:
    lead, heads, rows, _ = q.shape
    weights = layers.softmax(tape, _scores(tape, q, k, mask, bias), MATRICES)
    if tape.device == "cuda" and tape.bf16:
        weights = layers.cast(tape, weights, BF16, MATRICES)
    mixed = layers.product(tape, weights, _stacked(tape, v), (lead * heads, rows, v.shape[3]), k.shape[2], QKV)
    return _unstacked(tape, mixed, (lead, heads, rows, v.shape[3]))


def _scores(tape: Tape, q: Tensor, k: Tensor, mask: int, bias: Tensor | None) -> Tensor:
    lead, heads, rows, width = q.shape
    scaled = layers.scaled(tape, q, QKV)
    scores = layers.product(
        tape, _stacked(tape, scaled), _stacked(tape, k), (lead * heads, rows, k.shape[2]), width, MATRICES
    )
    if bias is not None:
        return layers.add(tape, scores, bias, MATRICES)
    if mask:
        return tape.apply(MATRICES, [scores], scores.shape, scores.item, gives=[scores.bytes], extra=mask)
    return scores


def _stacked(tape: Tape, x: Tensor) -> Tensor:
    """Images and heads on one axis, for a batched product: a copy, unless one of them is 1."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    if 1 in x.shape[:2]:
        return layers.view(tape, x, shape)
    return layers.copied(tape, x, shape, QKV)


def _unstacked(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """The way back; its gradient comes in another order and is copied."""
    return tape.apply("views", [x], shape, x.item, gives=[x.bytes], storage=x.storage)


def _fused(tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: int, bias: Tensor | None) -> Tensor:
    lead, heads, rows, width = q.shape
    pairs = lead * heads * rows * k.shape[2]
    inputs, gives = [q, k, v], [q.bytes, k.bytes, v.bytes]
    saves, extra = [q.storage, k.storage, v.storage], FP32 * lead * heads * rows
    if bias is not None:
        saves.append(bias.storage)
    return tape.apply(
        QKV,
        inputs,
        (lead, heads, rows, v.shape[3]),
        q.item,
        gives=gives,
        saves=saves,
        keeps_result=True,
        extra=extra + mask * q.item,
        flops=4 * pairs * width,
        back=10 * pairs * width,
    )


@dataclass(frozen=True)
class _Tiles:
    """One part of a sparse pattern: T tiles of Q queries and K keys, of which ``masked`` says whether all are seen."""

    count: int
    queries: int
    keys: int
    masked: bool


def _tiles(pattern: Pattern, grid: Shape, prefix: int, layer: int) -> list[_Tiles]:
    found = []
    for number, part in enumerate(parts(pattern, grid, layer)):
        queries = [[len(q) for q, _ in axis] for axis in part]
        keys = [[len(k) for _, k in axis] for axis in part]
        ragged = any(len(set(lengths)) > 1 for lengths in [*queries, *keys])
        count, q, k = (math.prod(values) for values in zip(*((len(a), max(a), max(b)) for a, b in zip(queries, keys))))
        masked = ragged or pattern.kind == "neighbourhood" or number > 0
        found.append(_Tiles(count, q, k + (prefix if number == 0 else 0), masked))
    return found


def attend_local(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, *, pattern: Pattern, grid: Shape, prefix: int, layer: int
) -> Tensor:
    """As nn/local: tiles of queries with the keys they need."""
    lead, heads, _, width = q.shape
    patches = math.prod(grid)
    whole = attend(tape, layers.part(tape, q, (lead, heads, prefix, width)), k, v) if prefix else None
    own, k, v = (_flat(tape, x) for x in (layers.part(tape, q, (lead, heads, patches, width)), k, v))
    cut = _tables(tape, pattern, grid, prefix, layer)
    found = _one_part(tape, own, k, v, cut[0]) if len(cut) == 1 else _several_parts(tape, own, k, v, cut)
    found = layers.view(tape, found, (lead, heads, patches, width))
    if whole is None:
        return found
    return layers.joined(tape, [whole, found], (lead, heads, prefix + patches, width), found.item, QKV)


def _flat(tape: Tape, x: Tensor) -> Tensor:
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return layers.view(tape, x, shape) if 1 in x.shape[:2] else layers.copied(tape, x, shape, QKV)


def _tables(tape: Tape, pattern: Pattern, grid: Shape, prefix: int, layer: int) -> list[_Tiles]:
    """The tiles; what says where they lie is kept for later calls, once for even and once for odd layers."""
    cut, key = _tiles(pattern, grid, prefix, layer), (str(pattern), grid, prefix, layer % 2)
    if key not in tape.tables:
        pairs = max(t.count * t.queries * t.keys for t in cut)
        busy = 3 * len(grid) if pattern.kind == "neighbourhood" else len(grid) + 1
        tape.brief(busy * pairs, TABLES)
        size = sum(8 * t.count * (t.queries + t.keys) + t.masked * t.count * t.queries * t.keys for t in cut)
        tape.tables[key] = tape.tensor((size + len(cut) * 8 * math.prod(grid),), TABLES, 1)
    return cut


def _one_part(tape: Tape, q: Tensor, k: Tensor, v: Tensor, t: _Tiles) -> Tensor:
    lead, _, width = q.shape
    own = layers.chosen(tape, q, (lead, t.count, t.queries, width), QKV)
    seen_k, seen_v = (layers.chosen(tape, x, (lead, t.count, t.keys, width), QKV) for x in (k, v))
    mixed = attend(tape, own, seen_k, seen_v, mask=t.masked * t.count * t.queries * t.keys)
    flat = layers.view(tape, mixed, (lead, t.count * t.queries, width))
    return layers.chosen(tape, flat, q.shape, QKV)


def _several_parts(tape: Tape, q: Tensor, k: Tensor, v: Tensor, cut: list[_Tiles]) -> Tensor:
    lead, patches, width = q.shape
    keys = sum(t.keys for t in cut)
    scores = [_tiled_scores(tape, q, k, t) for t in cut]
    weights = layers.softmax(tape, layers.joined(tape, scores, (lead, patches, keys), q.item, MATRICES), MATRICES)
    split = layers.split(tape, weights, [(lead, patches, t.keys) for t in cut])
    total: Tensor | None = None
    for t, own in zip(cut, split):
        seen = layers.chosen(tape, v, (lead * t.count, t.keys, width), QKV)
        tiled = layers.chosen(tape, own, (lead * t.count, t.queries, t.keys), MATRICES)
        mixed = layers.product(tape, tiled, seen, (lead * t.count, t.queries, width), t.keys, QKV)
        part = layers.chosen(tape, mixed, (lead, patches, width), QKV)
        total = part if total is None else layers.add(tape, total, part, QKV)
    assert total is not None
    return total


def _tiled_scores(tape: Tape, q: Tensor, k: Tensor, t: _Tiles) -> Tensor:
    lead, patches, width = q.shape
    own = layers.chosen(tape, layers.scaled(tape, q, QKV), (lead * t.count, t.queries, width), QKV)
    seen = layers.chosen(tape, k, (lead * t.count, t.keys, width), QKV)
    found = layers.product(tape, own, seen, (lead * t.count, t.queries, t.keys), width, MATRICES)
    if t.masked:
        pairs = t.count * t.queries * t.keys
        found = tape.apply(MATRICES, [found], found.shape, found.item, gives=[found.bytes], extra=pairs)
    return layers.chosen(tape, found, (lead, patches, t.keys), MATRICES)


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
        return layers.layer_norm(tape, y, w(f"{name}.{which}", 2 * dim), PATH)

    def branch(y: Tensor, which: str) -> Tensor:
        if p.layer_scale:
            y = layers.times_weights(tape, y, w(f"{name}.{which}", dim), PATH)
        return layers.drop_path(tape, y, p.drop_path, PATH)

    if p.norm == "pre":
        x = layers.add(tape, x, branch(attention(tape, w, f"{name}.attn", norm("norm1", x), p), "ls1"), PATH)
        return layers.add(tape, x, branch(mlp(tape, w, f"{name}.mlp", norm("norm2", x)), "ls2"), PATH)
    x = norm("norm1", layers.add(tape, x, branch(attention(tape, w, f"{name}.attn", x, p), "ls1"), PATH))
    return norm("norm2", layers.add(tape, x, branch(mlp(tape, w, f"{name}.mlp", x), "ls2"), PATH))


def attention(tape: Tape, w: Weights, name: str, tokens: Tensor, p: BlockPlan) -> Tensor:
    batch, count, dim = tokens.shape
    shape = (batch, p.heads, count, dim // p.heads)
    qkv = layers.linear(tape, tokens, w(f"{name}.qkv", 3 * dim * dim), 3 * dim, QKV, bias=w(f"{name}.qkv.b", 3 * dim))
    query, key, value = layers.three(tape, qkv, shape)
    if p.rotary:
        query, key = _rotated(tape, query), _rotated(tape, key)
    if p.pattern.kind == "full":
        mixed = attend(tape, query, key, value, mask=batch * count if p.masked else 0)
    else:
        mixed = attend_local(tape, query, key, value, pattern=p.pattern, grid=p.grid, prefix=p.prefix, layer=p.layer)
    # The fused kernel answers in the order of its queries: as the tokens lie, unless turning has put heads first.
    if written_out(tape, query, count) or p.pattern.kind != "full" or p.rotary:
        flat = layers.copied(tape, mixed, (batch, count, dim), QKV)
    else:
        flat = layers.view(tape, mixed, (batch, count, dim))
    del mixed
    return layers.linear(tape, flat, w(f"{name}.proj", dim * dim), dim, PATH, bias=w(f"{name}.proj.b", dim))


def _rotated(tape: Tape, x: Tensor) -> Tensor:
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = layers.part(tape, x, half), layers.part(tape, x, half)

    def turned(a: Tensor, b: Tensor) -> Tensor:
        products = [tape.apply(QKV, [t], half, FP32, gives=[t.bytes]) for t in (a, b)]
        return layers.add(tape, products[0], products[1], QKV)

    found = layers.joined(tape, [turned(first, second), turned(second, first)], x.shape, FP32, QKV)
    return layers.cast(tape, found, x.item, QKV)


def mlp(tape: Tape, w: Weights, name: str, x: Tensor) -> Tensor:
    dim = x.shape[-1]
    wide = layers.linear(tape, x, w(f"{name}.1", 4 * dim * dim), 4 * dim, MLP, bias=w(f"{name}.1.b", 4 * dim))
    active = layers.gelu(tape, wide, MLP)
    del wide
    return layers.linear(tape, active, w(f"{name}.2", 4 * dim * dim), dim, PATH, bias=w(f"{name}.2.b", dim))


# --- networks ----------------------------------------------------------------------------------


def patch_projection(tape: Tape, w: Weights, pixels: Tensor, dim: int, patch: int, name: str = "patch") -> Tensor:
    """[B C ...] to [B N D]: patches in rows of their own, times one matrix."""
    batch, channels, *size = pixels.shape
    count, inputs = math.prod(n // patch for n in size), channels * patch ** len(size)
    patches = layers.copied(tape, pixels, (batch, count, inputs), PATCHES)
    del pixels
    return layers.linear(tape, patches, w(name, inputs * dim), dim, PATCHES, bias=w(f"{name}.b", dim))


def _stem(tape: Tape, w: Weights, s: ViTSettings, pixels: Tensor) -> Tensor:
    """A convolutional stem or residual stages, then a projection of every place: [B C ...] to [B N D]."""
    steps, axes = s.patch.bit_length() - 1, len(pixels.shape) - 2
    x = layers.copied(tape, pixels, pixels.shape, MAPS) if s.channels > 1 else pixels
    del pixels
    batch, inputs, *size = x.shape
    for step in range(steps):
        width, size = max(8, s.dim // 2 ** (steps - 1 - step)), [(n + 1) // 2 for n in size]
        shape = (batch, width, *size)

        def conv(key: str, y: Tensor, kernel: int, shape: Shape = shape, step: int = step) -> Tensor:
            taps = y.shape[1] * kernel**axes
            return layers.convolution(tape, y, w(f"stem{step}.{key}", taps * shape[1]), shape, MAPS, per_output=taps)

        def norm(key: str, y: Tensor, step: int = step) -> Tensor:
            kind = layers.group_norm if s.stem == "conv" else layers.batch_norm
            return kind(tape, y, w(f"stem{step}.{key}", 2 * y.shape[1]), MAPS)

        if s.stem == "conv" or step == 0:
            x = layers.relu(tape, norm("n1", conv("c1", x, 3)), MAPS)
        else:
            kept = layers.part(tape, x, (batch, inputs, *size))
            if inputs != width:
                kept = norm("ns", conv("cs", kept, 1))
            inner = layers.relu(tape, norm("n1", conv("c1", x, 3)), MAPS)
            x = layers.add(tape, kept, norm("n2", conv("c2", inner, 3)), MAPS)
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
        x = layers.layer_norm(tape, x, w("norm", 2 * s.dim), PATH)
    batch, count, dim = x.shape
    tokens = layers.part(tape, x, (batch, count - prefix, dim))
    if s.stem == "grid":
        tokens = layers.scaled(tape, tokens, PATH)
    if s.pool == "mean":
        return layers.mean(tape, tokens, (batch, dim), PATH), tokens
    return layers.part(tape, x, (batch, dim)), tokens


def _through(tape: Tape, w: Weights, name: str, x: Tensor, plan: BlockPlan, *, recompute: bool) -> Tensor:
    def run(y: Tensor) -> Tensor:
        return block(tape, w, name, y, plan)

    return tape.once_more(run, x) if recompute else run(x)


def _enter(tape: Tape, w: Weights, s: ViTSettings, pixels: Tensor, call: Call) -> tuple[Tensor, Shape]:
    grid = tuple(n // s.patch for n in pixels.shape[2:])
    batch, count = pixels.shape[0], math.prod(grid)
    if s.stem in ("linear", "grid"):
        channels = pixels.shape[1] - (s.stem == "grid")
        x = patch_projection(tape, w, layers.view(tape, pixels, (batch, channels, *pixels.shape[2:])), s.dim, s.patch)
    else:
        x = _stem(tape, w, s, pixels)
    if call.hidden:
        token = w("hidden token", s.dim)
        x = tape.apply(PATH, [x, token], x.shape, x.item, gives=[x.bytes, FP32 * s.dim], extra=batch * count)
    x = positions(tape, w, "positions", s, x, grid)
    if call.kept:
        x = layers.chosen(tape, x, (batch, call.kept, s.dim), PATH, index=batch * call.kept)
    prefix = 1 + s.registers
    first = w("prefix", prefix * s.dim)
    return layers.joined(tape, [first, x], (batch, prefix + x.shape[1], s.dim), FP32, PATH), grid


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
        return layers.add_weights(tape, x, p, PATH)
    if kind == "conv":
        kernel = w(name, (3**s.axes + 1) * s.dim)
        near = layers.convolution(tape, x, kernel, x.shape, PATH, per_output=3**s.axes)
        return layers.add(tape, x, near, PATH)
    if kind == "sincos":
        # A table of the tokens' own number type: the sum stays in it.
        return tape.apply(PATH, [x], x.shape, x.item, gives=[None], scratch=(FP32 * table, 0))
    return x
