"""One step of every method on a tape: which network sees which views, heads, loss. Written as methods/ are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saccade.cost import ops
from saccade.cost.autograd_tape import FP32, Shape, Tape, Tensor
from saccade.cost.vit import ALL, BlockPlan, Call, Weights, block

HEADS = "heads and loss"
VIEWS = "views"

Net = Callable[[Tensor, Call], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """What a method works with.

    student, teacher   networks (the teacher keeps nothing)   heads, taught   weights of their heads
    views              globals first, [B C ...] each; ``global_count`` of them are global
    grid, patch        of a global view                       config   settings of the method, without Nones
    """

    tape: Tape
    student: Net
    teacher: Net
    heads: Weights
    taught: Weights
    views: list[Tensor]
    global_count: int
    grid: Shape
    patch: int
    config: Mapping[str, Any]

    @property
    def batch(self) -> int:
        return self.views[0].shape[0]


def stacked(tape: Tape, views: list[Tensor]) -> Tensor:
    """Views of one size after another, in memory of their own."""
    return tape.tensor((len(views) * views[0].shape[0], *views[0].shape[1:]), VIEWS)


def image_vectors(s: Stage, net: Net, views: list[Tensor]) -> Tensor:
    """One call of the network for each run of views of equal size: [V B, D]."""
    found: list[Tensor] = []
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].shape != views[start].shape:
            found.append(net(stacked(s.tape, views[start:end]), ALL)[0])
            start = end
    rows = sum(x.shape[0] for x in found)
    return ops.joined(s.tape, found, (rows, found[0].shape[1]), max(x.item for x in found), HEADS)


def projection(tape: Tape, w: Weights, name: str, x: Tensor, widths: list[int], norm: str = "none") -> Tensor:
    """Linear layers of these widths, between them a norm and GELU."""
    for number, width in enumerate(widths):
        if number:
            if norm == "batch":
                x = ops.batch_norm(tape, x, w(f"{name}.n{number}", 2 * x.shape[-1]), HEADS)
            elif norm == "layer":
                x = ops.layer_norm(tape, x, w(f"{name}.n{number}", 2 * x.shape[-1]), HEADS)
            x = ops.gelu(tape, x, HEADS)
        size = x.shape[-1] * width
        x = ops.linear(tape, x, w(f"{name}.{number}", size), width, HEADS, bias=w(f"{name}.{number}.b", width))
    return x


# --- DINO ---------------------------------------------------------------------------------------


def prototypes_head(tape: Tape, w: Weights, name: str, x: Tensor, c: Mapping[str, Any]) -> Tensor:
    """methods/dino.Head: [B D] to [B K] cosines, float32."""
    hidden, narrow, count = c["head_hidden"], c["bottleneck"], c["out_dim"]
    x = projection(tape, w, name, x, [hidden, hidden, narrow], c.get("head_norm") or "none")
    p = w(f"{name}.prototypes", count * narrow)
    prototypes = ops.normalised(tape, p, (count, narrow), HEADS)
    x = ops.normalised(tape, ops.cast(tape, x, FP32, HEADS), x.shape, HEADS)
    # [B, N] times the transpose of [K, N]
    return ops.product(tape, x, prototypes, (x.shape[0], count), narrow, HEADS)


def sharpened(tape: Tape, logits: Tensor, *, sinkhorn: bool) -> Tensor:
    """The teacher's answer; Sinkhorn-Knopp holds an old and a new matrix at a time."""
    found = ops.scaled(tape, logits, HEADS)
    found = ops.scaled(tape, found, HEADS)
    if sinkhorn:
        tape.brief(2 * found.bytes, HEADS)
    return ops.softmax(tape, found, HEADS)


def cross_entropy(tape: Tape, logits: Tensor, probs: Tensor, views: int, global_count: int) -> Tensor:
    """methods/dino.dino_loss on [V B K] and [G B K]."""
    log_student = ops.log_softmax(tape, logits, HEADS)
    rows, count = logits.shape[0] // views, logits.shape[1]
    summed = [ops.mean(tape, x, (rows, count), HEADS) for x in (probs, log_student)]
    every = ops.mean(tape, ops.times(tape, summed[0], summed[1], HEADS), (1,), HEADS)
    first = ops.part(tape, log_student, (global_count * rows, count))
    same = ops.mean(tape, ops.times(tape, probs, first, HEADS), (1,), HEADS)
    return ops.add(tape, same, every, HEADS)


def dino(s: Stage) -> Tensor:
    tape, c, count = s.tape, s.config, s.global_count
    with tape.still():
        seen = s.teacher(stacked(tape, s.views[:count]), ALL)[0]
        told = prototypes_head(tape, s.taught, "head", seen, c)
        probs = sharpened(tape, told, sinkhorn=c["centering"] == "sinkhorn")
    features = image_vectors(s, s.student, s.views)
    logits = prototypes_head(tape, s.heads, "head", features, c)
    loss = cross_entropy(tape, logits, probs, len(s.views), count)
    # Entropies for the log: a softmax of the student's global views, and terms of a sum.
    tape.brief(3 * told.bytes, HEADS)
    return loss


def dinov2(s: Stage) -> Tensor:
    tape, c, count = s.tape, s.config, s.global_count
    pixels = stacked(tape, s.views[:count])
    with tape.still():
        vectors, tokens = s.teacher(pixels, ALL)
        told = prototypes_head(tape, s.taught, "head", vectors, c)
        probs = sharpened(tape, told, sinkhorn=True)
    seen, patches = s.student(pixels, Call(hidden=True))
    found = [seen, *([image_vectors(s, s.student, s.views[count:])] if len(s.views) > count else [])]
    rows = sum(x.shape[0] for x in found)
    joined = ops.joined(tape, found, (rows, seen.shape[1]), FP32, HEADS)
    logits = prototypes_head(tape, s.heads, "head", joined, c)
    loss = cross_entropy(tape, logits, probs, len(s.views), count)
    if not c["patch_weight"]:
        return loss
    # Half a patch short on average: whole patches are hidden until less than one is missing.
    each = math.prod(s.grid) * sum(c["mask_ratio"]) / 2 - 0.5
    hidden = max(1, round(count * s.batch * c["mask_prob"] * each))
    head = "head" if c["shared_head"] else "patch head"
    shape = (hidden, patches.shape[2])
    with tape.still():
        taught = prototypes_head(tape, s.taught, head, ops.chosen(tape, tokens, shape, HEADS), c)
        wanted = sharpened(tape, taught, sinkhorn=True)
    drawn = prototypes_head(tape, s.heads, head, ops.chosen(tape, patches, shape, HEADS, index=2 * hidden), c)
    crosses = ops.times(tape, wanted, ops.log_softmax(tape, drawn, HEADS), HEADS)
    return ops.add(tape, loss, ops.mean(tape, crosses, (1,), HEADS), HEADS)


# --- other methods that compare images ----------------------------------------------------------


def contrast(s: Stage) -> Tensor:
    tape, c = s.tape, s.config
    widths, norm = [c["hidden"], c["hidden"], c["out_dim"]], c["head_norm"]
    vectors = image_vectors(s, s.student, s.views)
    answers = projection(tape, s.heads, "head", vectors, widths, norm)
    answers = projection(tape, s.heads, "predictor", answers, [c["hidden"], c["out_dim"]], norm)
    with tape.still():
        keys = projection(tape, s.taught, "head", image_vectors(s, s.teacher, s.views), widths, norm)
        keys = ops.cast(tape, keys, FP32, HEADS)
    total: Tensor | None = None
    queries = ops.normalised(tape, ops.cast(tape, answers, FP32, HEADS), answers.shape, HEADS)
    for one in range(len(s.views)):
        for other in range(len(s.views)):
            if one == other:
                continue
            query = ops.part(tape, queries, (s.batch, c["out_dim"]))
            key = Tensor((s.batch, c["out_dim"]), FP32, keys.storage)
            scores = ops.product(tape, query, key, (s.batch, s.batch), c["out_dim"], HEADS)
            loss = ops.mean(tape, ops.log_softmax(tape, scores, HEADS), (1,), HEADS)
            total = loss if total is None else ops.add(tape, total, loss, HEADS)
    assert total is not None
    tape.flops[HEADS] += 2 * s.batch**2 * c["out_dim"]  # how often the right one is found
    return total


def lejepa(s: Stage) -> Tensor:
    tape, c, knots = s.tape, s.config, 17
    vectors = image_vectors(s, s.student, s.views)
    found = projection(tape, s.heads, "head", vectors, [c["hidden"], c["hidden"], c["out_dim"]], c["head_norm"])
    found = ops.cast(tape, found, FP32, HEADS)
    directions = tape.tensor((c["out_dim"], c["slices"]), HEADS)
    total = ops.mean(tape, ops.times(tape, found, found, HEADS), (1,), HEADS)
    for _ in s.views:
        view = ops.part(tape, found, (s.batch, c["out_dim"]))
        shadows = ops.product(tape, view, directions, (s.batch, c["slices"]), c["out_dim"], HEADS)
        shape = (s.batch, c["slices"], knots)
        angles = tape.apply(HEADS, [shadows], shape, FP32, gives=[shadows.bytes], scratch=(0, FP32 * math.prod(shape)))
        waves = [ops.mean(tape, ops.gelu(tape, angles, HEADS), (c["slices"], knots), HEADS) for _ in ("cos", "sin")]
        test = ops.mean(tape, ops.add(tape, waves[0], waves[1], HEADS), (1,), HEADS)
        total = ops.add(tape, total, test, HEADS)
    return total


def pair(s: Stage) -> Tensor:
    tape = s.tape
    vectors = ops.cast(tape, image_vectors(s, s.student, s.views), FP32, HEADS)
    with tape.products_in(bf16=False):
        scores = []
        for _ in ("same", "mixed"):
            both = tape.apply(
                HEADS,
                [vectors],
                (s.batch, 2 * vectors.shape[1]),
                FP32,
                gives=[vectors.bytes],
                extra=4 * vectors.bytes,
            )
            scores.append(projection(tape, s.heads, "head", both, [s.config["hidden"], 1]))
    return ops.mean(tape, ops.add(tape, scores[0], scores[1], HEADS), (1,), HEADS)


def position(s: Stage) -> Tensor:
    tape, tile, total = s.tape, s.config["tile_px"], None
    for view in s.views:
        tiles = tape.tensor((2 * s.batch, view.shape[1], *(tile for _ in view.shape[2:])), VIEWS)
        vectors = ops.cast(tape, s.student(tiles, ALL)[0], FP32, HEADS)
        del tiles
        with tape.products_in(bf16=False):
            both = ops.copied(tape, vectors, (s.batch, 2 * vectors.shape[1]), HEADS)
            hidden = s.config["hidden"]
            scores = projection(tape, s.heads, "head", both, [hidden, hidden, 8], "layer")
        loss = ops.mean(tape, scores, (1,), HEADS)
        total = loss if total is None else ops.add(tape, total, loss, HEADS)
    assert total is not None
    return total


def supervised(s: Stage) -> Tensor:
    tape = s.tape
    pixels = stacked(tape, s.views)
    vectors = s.student(pixels, ALL)[0]
    vectors = ops.cast(tape, vectors, FP32, HEADS)
    with tape.products_in(bf16=False):
        scores = projection(tape, s.heads, "head", vectors, [len(s.config["classes"] or ("a", "b"))])
    return ops.mean(tape, ops.log_softmax(tape, scores, HEADS), (1,), HEADS)


# --- methods that hide patches ------------------------------------------------------------------


def masked(s: Stage) -> Tensor:
    tape, c, total = s.tape, s.config, None
    count = math.prod(s.grid)
    kept = min(count - 1, max(1, round(count * (1 - c["mask_ratio"]))))
    for view in s.views:
        inputs = view.shape[1] * s.patch ** len(s.grid)
        wanted = tape.tensor((s.batch, count, inputs), "targets")
        vector, tokens = s.student(view, Call(kept=kept))
        drawn = _decoded(s, vector, tokens, count, inputs)
        chosen = tape.tensor((s.batch, count - kept, inputs), "targets")
        if c["normalise"]:
            tape.brief(chosen.bytes, "targets")
            chosen = tape.tensor(chosen.shape, "targets")
        apart = ops.add(tape, ops.cast(tape, drawn, FP32, HEADS), chosen, HEADS)
        del drawn, chosen, wanted
        loss = ops.mean(tape, ops.gelu(tape, apart, HEADS), (1,), HEADS)
        total = loss if total is None else ops.add(tape, total, loss, HEADS)
    assert total is not None
    return total


def _decoded(s: Stage, vector: Tensor, tokens: Tensor, count: int, inputs: int) -> Tensor:
    tape, w, dim, kept = s.tape, s.heads, s.config["decoder_dim"], tokens.shape[1]
    wide = tokens.shape[2]
    x = ops.joined(tape, [vector, tokens], (s.batch, 1 + kept, wide), tokens.item, HEADS)
    x = ops.linear(tape, x, w("embed", wide * dim), dim, HEADS, bias=w("embed.b", dim))
    places = [tape.tensor((s.batch, n, dim), HEADS, x.item) for n in (kept, count - kept)]
    token = w("mask token", dim)
    asked = tape.apply(HEADS, [token], places[1].shape, x.item, gives=[x.item * dim])
    first, rest = ops.split(tape, x, [(s.batch, 1, dim), (s.batch, kept, dim)])
    placed = ops.add(tape, rest, places[0], HEADS)
    x = ops.joined(tape, [first, placed, asked], (s.batch, 1 + count, dim), x.item, HEADS)
    del rest, first, placed, asked, places
    for index in range(s.config["decoder_depth"]):
        x = block(tape, w, f"decoder{index}", x, BlockPlan(dim // 32))
    x = ops.copied(tape, ops.part(tape, x, (s.batch, count - kept, dim)), (s.batch, count - kept, dim), HEADS)
    x = ops.layer_norm(tape, x, w("norm", 2 * dim), HEADS)
    return ops.linear(tape, x, w("draw", dim * inputs), inputs, HEADS, bias=w("draw.b", inputs))


def latent(s: Stage) -> Tensor:
    tape, total, targets = s.tape, None, 4
    context, asked = _blocks(s.grid, s.batch, targets)
    for view in s.views:
        with tape.still():
            whole = s.teacher(view, ALL)[1]
            answers = tape.tensor(whole.shape, "targets")
        seen = s.student(view, Call(kept=context))[1]
        guesses = _predicted(s, seen, context, asked, targets)
        wanted = tape.tensor((targets * s.batch, asked, whole.shape[2]), "targets")
        tape.brief(targets * answers.bytes, "targets")
        loss = ops.add(tape, ops.cast(tape, guesses, FP32, HEADS), wanted, HEADS)
        loss = ops.mean(tape, ops.gelu(tape, loss, HEADS), (1,), HEADS)
        total = loss if total is None else ops.add(tape, total, loss, HEADS)
    assert total is not None
    return total


def _predicted(s: Stage, seen: Tensor, context: int, asked: int, targets: int) -> Tensor:
    tape, w, dim, wide = s.tape, s.heads, s.config["predictor_dim"], seen.shape[2]
    rows = targets * s.batch
    x = ops.chosen(tape, seen, (rows, context, wide), HEADS)
    x = ops.linear(tape, x, w("embed", wide * dim), dim, HEADS, bias=w("embed.b", dim))
    item, token = x.item, w("mask token", dim)
    places = [tape.tensor((rows, n, dim), HEADS, item) for n in (context, asked)]
    both: list[Any] = [
        ops.add(tape, x, places[0], HEADS),
        tape.apply(HEADS, [token], places[1].shape, item, gives=[item * dim]),
    ]
    x = ops.joined(tape, both, (rows, context + asked, dim), item, HEADS)
    del both, places
    for index in range(s.config["predictor_depth"]):
        x = block(tape, w, f"predictor{index}", x, BlockPlan(dim // 32))
    x = ops.layer_norm(tape, ops.part(tape, x, (rows, asked, dim)), w("norm", 2 * dim), HEADS)
    return ops.linear(tape, x, w("back", dim * wide), wide, HEADS, bias=w("back.b", wide))


def _blocks(grid: Shape, batch: int, targets: int) -> tuple[int, int]:
    """Patches of the context and of a target, the means of augment/masks.context_and_targets over 20 steps.

    Its blocks are drawn for every step; the context has as many patches as the image with the fewest.
    """
    draw, kept, hidden = random.Random(0), 0, 0
    steps, images = 20, min(batch, 32)
    for _ in range(steps):
        area, aspect = draw.uniform(0.15, 0.2) * math.prod(grid), draw.uniform(0.75, 1.5)
        wanted = (math.sqrt(area * aspect), math.sqrt(area / aspect))
        size = [min(max(1, n - 1), max(1, round(side))) for side, n in zip(wanted, grid)]
        around = [max(1, round(n * math.sqrt(draw.uniform(0.85, 1.0)))) for n in grid[:2]]
        fewest = math.prod(grid)
        for _ in range(images):
            free = _cells(grid, around, draw)
            for _ in range(targets):
                free -= _cells(grid, size, draw)
            fewest = min(fewest, len(free) or 1)
        kept, hidden = kept + fewest, hidden + math.prod(size)
    return max(1, round(kept / steps)), max(1, round(hidden / steps))


def _cells(grid: Shape, size: list[int], draw: random.Random) -> set[tuple[int, ...]]:
    starts = [draw.randrange(n - side + 1) for n, side in zip(grid, size)]
    rows, columns = (range(start, start + side) for start, side in zip(starts[:2], size[:2]))
    return {(y, x) for y in rows for x in columns}


STEPS: dict[str, Callable[[Stage], Tensor]] = {
    "dino": dino,
    "dinov2": dinov2,
    "moco_v3": contrast,
    "lejepa": lejepa,
    "same_image": pair,
    "relative_position": position,
    "mae": masked,
    "ijepa": latent,
    "supervised": supervised,
}
TAUGHT = ("dino", "dinov2", "moco_v3", "ijepa")
"""Methods with a teacher: a second network of the same shape."""
