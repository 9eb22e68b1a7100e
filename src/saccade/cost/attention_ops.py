"""Attention on a tape, as nn/attention and nn/local: written out or fused, over all tokens or in tiles of some."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saccade.cost import ops
from saccade.cost.autograd_tape import BF16, FP32, Shape, Tape, Tensor
from saccade.models.attention_patterns import Pattern, parts

# nn/attention: up to so many keys the attention is written out on the CPU.
EXPLICIT_TOKENS_BF16 = 512
EXPLICIT_TOKENS_FP32 = 192

MATRICES = "attention matrices"
QKV = "queries, keys, values"
TABLES = "attention tables"


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
    weights = ops.softmax(tape, _scores(tape, q, k, mask, bias), MATRICES)
    if tape.device == "cuda" and tape.bf16:
        weights = ops.cast(tape, weights, BF16, MATRICES)
    mixed = ops.product(tape, weights, _stacked(tape, v), (lead * heads, rows, v.shape[3]), k.shape[2], QKV)
    return _unstacked(tape, mixed, (lead, heads, rows, v.shape[3]))


def _scores(tape: Tape, q: Tensor, k: Tensor, mask: int, bias: Tensor | None) -> Tensor:
    lead, heads, rows, width = q.shape
    scaled = ops.scaled(tape, q, QKV)
    scores = ops.product(
        tape, _stacked(tape, scaled), _stacked(tape, k), (lead * heads, rows, k.shape[2]), width, MATRICES
    )
    if bias is not None:
        return ops.add(tape, scores, bias, MATRICES)
    if mask:
        return tape.apply(MATRICES, [scores], scores.shape, scores.item, gives=[scores.bytes], extra=mask)
    return scores


def _stacked(tape: Tape, x: Tensor) -> Tensor:
    """Images and heads on one axis, for a batched product: a copy, unless one of them is 1."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    if 1 in x.shape[:2]:
        return ops.view(tape, x, shape)
    return ops.copied(tape, x, shape, QKV)


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
    whole = attend(tape, ops.part(tape, q, (lead, heads, prefix, width)), k, v) if prefix else None
    own, k, v = (_flat(tape, x) for x in (ops.part(tape, q, (lead, heads, patches, width)), k, v))
    cut = _tables(tape, pattern, grid, prefix, layer)
    found = _one_part(tape, own, k, v, cut[0]) if len(cut) == 1 else _several_parts(tape, own, k, v, cut)
    found = ops.view(tape, found, (lead, heads, patches, width))
    if whole is None:
        return found
    return ops.joined(tape, [whole, found], (lead, heads, prefix + patches, width), found.item, QKV)


def _flat(tape: Tape, x: Tensor) -> Tensor:
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return ops.view(tape, x, shape) if 1 in x.shape[:2] else ops.copied(tape, x, shape, QKV)


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
    own = ops.chosen(tape, q, (lead, t.count, t.queries, width), QKV)
    seen_k, seen_v = (ops.chosen(tape, x, (lead, t.count, t.keys, width), QKV) for x in (k, v))
    mixed = attend(tape, own, seen_k, seen_v, mask=t.masked * t.count * t.queries * t.keys)
    flat = ops.view(tape, mixed, (lead, t.count * t.queries, width))
    return ops.chosen(tape, flat, q.shape, QKV)


def _several_parts(tape: Tape, q: Tensor, k: Tensor, v: Tensor, cut: list[_Tiles]) -> Tensor:
    lead, patches, width = q.shape
    keys = sum(t.keys for t in cut)
    scores = [_tiled_scores(tape, q, k, t) for t in cut]
    weights = ops.softmax(tape, ops.joined(tape, scores, (lead, patches, keys), q.item, MATRICES), MATRICES)
    split = ops.split(tape, weights, [(lead, patches, t.keys) for t in cut])
    total: Tensor | None = None
    for t, own in zip(cut, split):
        seen = ops.chosen(tape, v, (lead * t.count, t.keys, width), QKV)
        tiled = ops.chosen(tape, own, (lead * t.count, t.queries, t.keys), MATRICES)
        mixed = ops.product(tape, tiled, seen, (lead * t.count, t.queries, width), t.keys, QKV)
        part = ops.chosen(tape, mixed, (lead, patches, width), QKV)
        total = part if total is None else ops.add(tape, total, part, QKV)
    assert total is not None
    return total


def _tiled_scores(tape: Tape, q: Tensor, k: Tensor, t: _Tiles) -> Tensor:
    lead, patches, width = q.shape
    own = ops.chosen(tape, ops.scaled(tape, q, QKV), (lead * t.count, t.queries, width), QKV)
    seen = ops.chosen(tape, k, (lead * t.count, t.keys, width), QKV)
    found = ops.product(tape, own, seen, (lead * t.count, t.queries, t.keys), width, MATRICES)
    if t.masked:
        pairs = t.count * t.queries * t.keys
        found = tape.apply(MATRICES, [found], found.shape, found.item, gives=[found.bytes], extra=pairs)
    return ops.chosen(tape, found, (lead, patches, t.keys), MATRICES)
