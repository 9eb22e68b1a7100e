"""A training step played with sizes instead of numbers: what is held, when, under which name. No torch here.

A small copy of torch's autograd. An operation makes a ``Tensor`` that has a shape and no values; what the backward pass
will want is kept in a ``Node``. Memory is taken when a ``Storage`` is made and given back when the last reference to it
is gone, as in torch, because both leave that to Python. So networks that are written here as they are written in torch
have the same peak. Operations are counted as torch's flop counter does: matrix products and convolutions only.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from saccade.cost.allocator import Heap

FP32, BF16 = 4, 2
GRADIENTS, IN_FLIGHT, SCRATCH = "gradients of the weights", "gradients in flight", "working space"

Shape = tuple[int, ...]


class Storage:
    """Some memory under a name, on the books of its tape as long as anything refers to it."""

    __slots__ = ("bytes", "chunk", "name", "tape")

    def __init__(self, tape: Tape, count: int, name: str):
        self.tape, self.bytes, self.name = tape, count, name
        self.chunk = tape.heap.take(count) if count else None
        tape.take(name, count)

    def __del__(self) -> None:
        self.tape.give_back(self.name, self.bytes)
        if self.chunk is not None:
            self.tape.heap.give_back(*self.chunk)

    def rename(self, name: str) -> None:
        self.tape.held[self.name] -= self.bytes
        self.tape.held[name] += self.bytes
        self.name = name


@dataclass(frozen=True, slots=True)
class Gives:
    """The gradient for one input: so many bytes of its own, or (None) the one that came in, handed through."""

    bytes: int | None


class Node:
    """One operation, seen from the backward pass."""

    __slots__ = ("again", "flops", "gathers", "gives", "grad", "inputs", "name", "number", "saved", "scratch")

    def __init__(
        self,
        number: int,
        name: str,
        inputs: tuple[Node | None, ...] = (),
        gives: tuple[Gives, ...] = (),
        saved: tuple[Storage, ...] = (),
        flops: int = 0,
        scratch: int = 0,
    ):
        self.number, self.name, self.inputs, self.gives, self.saved = number, name, inputs, gives, saved
        self.flops, self.scratch = flops, scratch
        self.grad: Storage | None = None
        self.gathers = False  # whether it wants all gradients side by side instead of their sum
        self.again: Callable[[Storage], Storage] | None = None  # from the gradient behind it to the one before it


@dataclass(frozen=True, slots=True)
class Tensor:
    """A shape, bytes an element, and the node that made it (None where no gradient is wanted)."""

    shape: Shape
    item: int
    storage: Storage
    node: Node | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.item


@dataclass(frozen=True)
class Parameter:
    """Weights. Their own memory is entered once, as a whole; here are their gradient and their bf16 copy."""

    size: int
    node: Node | None


class Tape:
    """The books: bytes held by name, their peak, operations by name.

    bf16     products run in bf16, as under autocast        device   "cpu" or "cuda"
    explicit attention as written (True), fused (False), or as nn/attention decides (None)
    """

    def __init__(
        self, *, bf16: bool = False, device: Literal["cpu", "cuda"] = "cpu", explicit: bool | None = None
    ) -> None:
        self.bf16, self.device, self.explicit = bf16, device, explicit
        self.heap = Heap()
        self.held: Counter[str] = Counter()
        self.total = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.flops: Counter[str] = Counter()
        self.until_saved: Counter[str] = Counter()
        self.recording = True
        self.numbers = 0
        self.copies: dict[int, Tensor] = {}
        self.tables: dict[tuple[object, ...], Tensor] = {}

    # --- the books

    def take(self, name: str, count: int) -> None:
        self.held[name] += count
        self.total += count
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.held)

    def give_back(self, name: str, count: int) -> None:
        self.held[name] -= count
        self.total -= count

    def brief(self, count: int, name: str = SCRATCH) -> None:
        """Memory that is taken and given back at once."""
        Storage(self, count, name)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is kept for a backward pass in here."""
        before, self.recording = self.recording, False
        yield
        self.recording = before

    def once_more(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Activation checkpointing (Chen et al. 2016): of ``run(x)`` only ``x`` is kept, and it is run again later."""
        if not self.recording or x.node is None:
            return run(x)
        before = len(self.heap.pieces)
        with self.still():
            found = run(x)
        self.heap.free_pieces(before)

        def again(grad: Storage) -> Storage:
            self.copies.clear()
            before, leaf = len(self.heap.pieces), self._node("leaf")
            out = run(Tensor(x.shape, x.item, x.storage, leaf))
            self.flops = self.until_saved  # torch stops where the last tensor that was wanted is there again
            self.backward(out, grad)
            del out
            self.copies.clear()
            self.heap.free_pieces(before)
            assert leaf.grad is not None
            leaf.grad.rename(IN_FLIGHT)
            return leaf.grad

        out = self.apply("views", [x], found.shape, found.item, gives=[None], saves=[x.storage], storage=found.storage)
        assert out.node is not None
        out.node.again = again
        return out

    @contextmanager
    def products_in(self, bf16: bool) -> Iterator[None]:
        before, self.bf16 = self.bf16, bf16
        yield
        self.bf16 = before

    def forget_copies(self) -> None:
        """The end of autocast: bf16 copies of weights live on only where the backward pass wants them."""
        self.copies.clear()

    # --- tensors

    def tensor(self, shape: Shape, name: str, item: int = FP32) -> Tensor:
        """Data, without gradient."""
        return Tensor(shape, item, Storage(self, math.prod(shape) * item, name))

    def parameter(self, size: int, *, trains: bool = True) -> Parameter:
        return Parameter(size, self._node("leaf") if trains else None)

    def _node(self, name: str, *rest: object) -> Node:
        self.numbers += 1
        return Node(self.numbers, name, *rest)  # type: ignore[arg-type]

    def apply(
        self,
        name: str,
        inputs: Sequence[Tensor | Parameter],
        shape: Shape,
        item: int,
        *,
        gives: Sequence[int | None],
        saves: Sequence[Storage] = (),
        keeps_result: bool = False,
        extra: int = 0,
        flops: int = 0,
        back: int = 0,
        scratch: tuple[int, int] = (0, 0),
        storage: Storage | None = None,
    ) -> Tensor:
        """One operation.

        gives     bytes of the gradient of every input; None: the incoming one is handed through
        saves, keeps_result, extra   what the backward pass wants: storages, the result, so many bytes besides
        flops, back   operations forward and backward      scratch   bytes held during either and given back
        storage   of the result, where it is a view
        """
        if scratch[0]:
            self.brief(scratch[0])
        out = storage or Storage(self, math.prod(shape) * item, name)
        wanted = any(x.node is not None for x in inputs)
        if not (self.recording and wanted):
            self.flops[name] += flops
            return Tensor(shape, item, out)
        if saves or keeps_result or extra:
            self.until_saved = Counter(self.flops)
            if keeps_result:
                self.until_saved[name] += flops
        self.flops[name] += flops
        kept = [*saves, *([out] if keeps_result else []), *([Storage(self, extra, name)] if extra else [])]
        nodes = tuple(x.node for x in inputs)
        node = self._node(name, nodes, tuple(Gives(g) for g in gives), tuple(kept), back, scratch[1])
        return Tensor(shape, item, out, node)

    # --- backward

    def backward(self, root: Tensor, grad: Storage | None = None) -> None:
        """Every node from the last to the first; what it saved is given back after it, as torch does."""
        assert root.node is not None
        last = root.node
        arrived: dict[Node, list[Storage]] = {last: [grad or Storage(self, root.bytes, IN_FLIGHT)]}
        waiting, queue = _consumers(last), [(-last.number, last)]
        del root, last
        while queue:
            node = heapq.heappop(queue)[1]
            grad, *others = arrived.pop(node)
            if node.name == "leaf":
                if node.grad is None:
                    grad.rename(GRADIENTS)
                    node.grad = grad
                continue
            if node.again is not None:
                grad, node.again = node.again(grad), None
            self.flops[node.name] += node.flops
            given = [
                None if into is None else grad if g.bytes is None else Storage(self, g.bytes, IN_FLIGHT)
                for into, g in zip(node.inputs, node.gives, strict=True)
            ]
            if node.scratch:
                self.brief(node.scratch)
            del grad, others
            node.saved = ()
            for into, part in zip(node.inputs, given):
                if into is None or part is None:
                    continue
                waiting[into] -= 1
                if into.gathers or into not in arrived:  # else it is added to the first one in place
                    arrived.setdefault(into, []).append(part)
                if not waiting[into]:
                    heapq.heappush(queue, (-into.number, into))
            del given, part
            node.inputs = ()


def _consumers(root: Node) -> Counter[Node]:
    """How many gradients every node waits for."""
    found: Counter[Node] = Counter()
    stack, seen = [root], {root}
    while stack:
        for into in stack.pop().inputs:
            if into is None:
                continue
            found[into] += 1
            if into not in seen:
                seen.add(into)
                stack.append(into)
    return found
