"""Operations of torch on a tape: what each makes, keeps for the backward pass, and gives back to its inputs.

Every function says what autograd saves; tests compare with ``torch.autograd.graph.saved_tensors_hooks``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from saccade.cost.autograd_tape import BF16, FP32, Parameter, Shape, Tape, Tensor

# --- shapes ------------------------------------------------------------------------------------


def view(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """Other shape or order, same memory."""
    return tape.apply("views", [x], shape, x.item, gives=[None], storage=x.storage)


def copied(tape: Tape, x: Tensor, shape: Shape, name: str) -> Tensor:
    """Other shape or order in memory of its own: what ``reshape`` does where a view is not enough."""
    return tape.apply(name, [x], shape, x.item, gives=[None])


def part(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """A slice; its gradient is as large as the whole."""
    return tape.apply("views", [x], shape, x.item, gives=[x.bytes], storage=x.storage)


def three(tape: Tape, x: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one tensor; the way back stacks their gradients and brings them in order."""
    ordered = tape.apply("views", [x], x.shape, x.item, gives=[x.bytes], storage=x.storage)
    one, two, other = split(tape, ordered, [shape] * 3)
    return one, two, other


def split(tape: Tape, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Views; all their gradients are held until they are put together."""
    whole = tape.apply("views", [x], x.shape, x.item, gives=[x.bytes], storage=x.storage)
    if whole.node is not None:
        whole.node.gathers = True
    return [Tensor(shape, x.item, x.storage, whole.node) for shape in shapes]


def joined(tape: Tape, xs: Sequence[Tensor | Parameter], shape: Shape, item: int, name: str) -> Tensor:
    """``cat``: gradients are slices of the incoming one."""
    return tape.apply(name, xs, shape, item, gives=[None] * len(xs))


def chosen(tape: Tape, x: Tensor, shape: Shape, name: str, *, index: int = 0) -> Tensor:
    """``gather``, ``index_select``, ``repeat_interleave``: the index is kept, the gradient is as large as the whole."""
    return tape.apply(name, [x], shape, x.item, gives=[x.bytes], extra=8 * index)


def cast(tape: Tape, x: Tensor, item: int, name: str) -> Tensor:
    if x.item == item:
        return x
    return tape.apply(name, [x], x.shape, item, gives=[x.bytes])


# --- element by element -------------------------------------------------------------------------


def add(tape: Tape, x: Tensor, y: Tensor, name: str) -> Tensor:
    """A smaller ``y`` is repeated; its gradient is a sum."""
    item = max(x.item, y.item)
    gives = [None if t.bytes == x.size * item else t.bytes for t in (x, y)]
    return tape.apply(name, [x, y], x.shape, item, gives=gives)


def add_weights(tape: Tape, x: Tensor, p: Parameter, name: str) -> Tensor:
    return tape.apply(name, [x, p], x.shape, FP32, gives=[None if x.item == FP32 else x.bytes, FP32 * p.size])


def scaled(tape: Tape, x: Tensor, name: str) -> Tensor:
    """Times a number, or any function whose backward wants nothing but a number."""
    return tape.apply(name, [x], x.shape, x.item, gives=[x.bytes])


def times(tape: Tape, x: Tensor, y: Tensor, name: str) -> Tensor:
    item = max(x.item, y.item)
    return tape.apply(
        name, [x, y], x.shape, item, gives=[x.bytes, y.bytes], saves=[x.storage, y.storage], scratch=(0, 0)
    )


def times_weights(tape: Tape, x: Tensor, p: Parameter, name: str) -> Tensor:
    """LayerScale: the input is kept for the gradient of the factors, which is a sum of a product."""
    wants = p.node is not None
    return tape.apply(
        name,
        [x, p],
        x.shape,
        FP32,
        gives=[x.bytes, FP32 * p.size],
        saves=[x.storage] if wants else [],
        scratch=(0, FP32 * x.size),
    )


def gelu(tape: Tape, x: Tensor, name: str) -> Tensor:
    return tape.apply(name, [x], x.shape, x.item, gives=[x.bytes], saves=[x.storage])


def relu(tape: Tape, x: Tensor, name: str) -> Tensor:
    return tape.apply(name, [x], x.shape, x.item, gives=[x.bytes], keeps_result=True)


def softmax(tape: Tape, x: Tensor, name: str) -> Tensor:
    return tape.apply(name, [x], x.shape, x.item, gives=[x.bytes], keeps_result=True)


def drop_path(tape: Tape, x: Tensor, rate: float, name: str) -> Tensor:
    """One factor a sample."""
    if not rate or not tape.recording:
        return x
    return tape.apply(name, [x], x.shape, x.item, gives=[x.bytes], extra=x.item * x.shape[0])


def mean(tape: Tape, x: Tensor, shape: Shape, name: str) -> Tensor:
    """The gradient is a view of a small one, until something needs it whole."""
    return tape.apply(name, [x], shape, x.item, gives=[math.prod(shape) * x.item])


# --- norms --------------------------------------------------------------------------------------


def layer_norm(tape: Tape, x: Tensor, p: Parameter, name: str) -> Tensor:
    """Input, means and deviations are kept."""
    rows = x.size // x.shape[-1]
    return tape.apply(
        name, [x, p], x.shape, x.item, gives=[x.bytes, FP32 * p.size], saves=[x.storage], extra=2 * FP32 * rows
    )


def batch_norm(tape: Tape, x: Tensor, p: Parameter, name: str) -> Tensor:
    """Of [B C ...]; two numbers a channel besides the input."""
    return tape.apply(
        name, [x, p], x.shape, x.item, gives=[x.bytes, FP32 * p.size], saves=[x.storage], extra=FP32 * p.size
    )


def group_norm(tape: Tape, x: Tensor, p: Parameter, name: str) -> Tensor:
    """With one group: two numbers an image besides the input."""
    return tape.apply(
        name, [x, p], x.shape, x.item, gives=[x.bytes, FP32 * p.size], saves=[x.storage], extra=2 * FP32 * x.shape[0]
    )


# --- products -----------------------------------------------------------------------------------


def _weights(tape: Tape, p: Parameter) -> Tensor | Parameter:
    """Under autocast, the bf16 copy: made once a step for what learns, every time for what does not."""
    if not tape.bf16:
        return p
    if p.node is None:
        return tape.tensor((p.size,), "weights in bf16", BF16)
    if id(p) not in tape.copies:
        recording, tape.recording = tape.recording, True
        tape.copies[id(p)] = tape.apply("weights in bf16", [p], (p.size,), BF16, gives=[FP32 * p.size])
        tape.recording = recording
    return tape.copies[id(p)]


def linear(tape: Tape, x: Tensor, p: Parameter, outputs: int, name: str, *, bias: Parameter | None = None) -> Tensor:
    """[... I] times a matrix; the input is kept where the matrix learns, the matrix where the input does."""
    inputs, rows = x.shape[-1], x.size // x.shape[-1]
    item = BF16 if tape.bf16 else x.item
    x, matrix = cast(tape, x, item, name), _weights(tape, p)
    both: list[Tensor | Parameter] = [x, matrix]
    gives: list[int | None] = [rows * inputs * item, p.size * item]
    if bias is not None:
        both.append(_weights(tape, bias))
        gives.append(bias.size * item)
    saves = [x.storage] if p.node is not None else []
    if x.node is not None and isinstance(matrix, Tensor):
        saves.append(matrix.storage)
    flops = 2 * rows * inputs * outputs
    back = flops * ((x.node is not None) + (p.node is not None))
    return tape.apply(name, both, (*x.shape[:-1], outputs), item, gives=gives, saves=saves, flops=flops, back=back)


def product(tape: Tape, x: Tensor, y: Tensor, shape: Shape, inner: int, name: str) -> Tensor:
    """Batched matrix product; each factor is kept where the other one learns."""
    flops = 2 * math.prod(shape) * inner
    saves = ([x.storage] if y.node is not None else []) + ([y.storage] if x.node is not None else [])
    back = flops * ((x.node is not None) + (y.node is not None))
    return tape.apply(name, [x, y], shape, x.item, gives=[x.bytes, y.bytes], saves=saves, flops=flops, back=back)


def convolution(tape: Tape, x: Tensor, p: Parameter, shape: Shape, name: str, *, per_output: int) -> Tensor:
    """To [B O ...]; ``per_output``: multiply-adds for one number of the result.

    Maps have their channels last, weights have them first: both ways the weights are copied into that order and into
    the blocks of oneDNN, and their gradient out of both.
    """
    item = BF16 if tape.bf16 else x.item
    x, kernel = cast(tape, x, item, name), _weights(tape, p)
    flops = 2 * math.prod(shape) * per_output
    saves = [x.storage] + ([kernel.storage] if isinstance(kernel, Tensor) else [])
    back = flops * ((x.node is not None) + (p.node is not None))
    return tape.apply(
        name,
        [x, kernel],
        shape,
        item,
        gives=[x.bytes, p.size * item],
        saves=saves,
        flops=flops,
        back=back,
        scratch=(2 * p.size * item, 3 * p.size * item),
    )


def normalised(tape: Tape, x: Tensor | Parameter, shape: Shape, name: str) -> Tensor:
    """``F.normalize``: rows of length 1. The way back goes through a division and a norm."""
    size = math.prod(shape)
    saves = [x.storage] if isinstance(x, Tensor) else []
    return tape.apply(
        name, [x], shape, FP32, gives=[FP32 * size], saves=saves, extra=FP32 * shape[0], scratch=(0, 3 * FP32 * size)
    )


def log_softmax(tape: Tape, x: Tensor, name: str) -> Tensor:
    """Of numbers divided by a temperature."""
    return tape.apply(name, [scaled(tape, x, name)], x.shape, FP32, gives=[FP32 * x.size], keeps_result=True)
