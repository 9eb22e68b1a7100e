"""Memory over time: what is allocated at the peak of a recorded step, and how far glibc's heap grows. No torch here.

On the CPU saccade keeps freed memory (``runtime.keep_freed_memory``), so a process never shrinks, and its peak is how
far its heap has grown. The heap uses the smallest free chunk that fits and joins neighbours when they are freed.
``posix_memalign`` adds to the fragmentation: to align a tensor it cuts a piece off in front of it. Small objects, such
as nodes of the autograd graph, move into the piece, and until the backward pass has released them the free chunk is a
little too small for a tensor of the same size. Recomputed forward passes (checkpointing) release theirs at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saccade.cost.recorder import Block, Event

ALIGNED, HEADER = 64, 16
PIECE = 64
SLACK = 64  # a free chunk must be larger than the tensor by this, so that it contains an aligned address
LARGEST = 2**30
"""Bytes of a tensor up to which the pieces have been compared with real processes. For larger ones they would turn
every freed tensor into terabytes that cannot be used again, which no measurement shows: they are left out."""
STEPS = 3
"""Steps to play: the first one allocates the state of the optimizer, and after the third the heap hardly grows."""


class Heap:
    """Addresses for sizes in bytes; ``top`` is how far the heap has grown."""

    def __init__(self) -> None:
        self.top = 0
        self.free_chunks: list[tuple[int, int]] = []  # (size, start), the smallest first
        self.sizes_by_start: dict[int, int] = {}
        self.starts_by_end: dict[int, int] = {}
        self.pieces: list[int] = []

    def allocate(self, count: int, *, keep_piece: bool = True) -> tuple[int, int]:
        """(start, end) of a chunk for ``count`` bytes. keep_piece: a small object moves into the piece before it."""
        size = -(-(count + HEADER) // ALIGNED) * ALIGNED + PIECE
        index = bisect_left(self.free_chunks, (size + SLACK, 0))
        if index == len(self.free_chunks):
            # A free chunk that ends at the top is extended.
            start = self.starts_by_end.get(self.top, self.top)
            if start != self.top:
                self._remove(start)
            self.top = max(self.top, start + size)
        else:
            free, start = self.free_chunks[index]
            self._remove(start)
            if free > size:
                self._add(start + size, free - size)
        if keep_piece:
            self.pieces.append(start)
        else:
            self.free(start, start + PIECE)
        return start + PIECE, start + size

    def free(self, start: int, end: int) -> None:
        before = self.starts_by_end.get(start)
        if before is not None:
            self._remove(before)
            start = before
        if end in self.sizes_by_start:
            after = end + self.sizes_by_start[end]
            self._remove(end)
            end = after
        self._add(start, end - start)

    def free_pieces(self) -> None:
        """The small objects in the pieces are released."""
        for start in self.pieces:
            self.free(start, start + PIECE)
        self.pieces.clear()

    def _add(self, start: int, size: int) -> None:
        insort(self.free_chunks, (size, start))
        self.sizes_by_start[start], self.starts_by_end[start + size] = size, start

    def _remove(self, start: int) -> None:
        size = self.sizes_by_start.pop(start)
        del self.starts_by_end[start + size]
        del self.free_chunks[bisect_left(self.free_chunks, (size, start))]


@dataclass(frozen=True)
class Footprint:
    """Memory of some steps: bytes by label at the moment when most is allocated, and bytes of the grown heap."""

    at_peak: Mapping[str, int]
    heap: int

    @property
    def peak(self) -> int:
        return sum(self.at_peak.values())


def sums_in_place(events: Iterable[Event]) -> list[Event]:
    """The events with gradients added in place: a sum takes over the memory of the summand that is freed after it."""
    result: list[Event] = []
    owner: dict[Block, Block] = {}
    pending: Block | None = None
    for block, allocated in events:
        if allocated:
            pending = block if block.is_sum else None
            result.append((block, True))
        elif pending is not None and block.size == pending.size:
            at = next(i for i in range(len(result) - 1, -1, -1) if result[i] == (pending, True))
            del result[at]
            owner[pending] = owner.get(block, block)
            pending = None
        else:
            result.append((owner.get(block, block), False))
    return result


def play(steps: Sequence[Sequence[Event]]) -> Footprint:
    """Play recorded steps one after another, ``STEPS`` of them or more.

    What the first step leaves behind (the state of the optimizer) is allocated once.
    """
    steps = [sums_in_place(step) for step in steps]
    permanent = _never_freed(steps[0])
    heap = Heap()
    chunks: dict[Block, tuple[int, int]] = {}
    by_label: Counter[str] = Counter()
    at_peak: dict[str, int] = {}
    total = peak = 0
    for number in range(max(STEPS, len(steps))):
        backward = False
        for block, allocated in steps[number % len(steps)]:
            if not allocated:
                heap.free(*chunks.pop(block))
                by_label[block.label] -= block.size
                total -= block.size
            elif not (number and block in permanent):
                if backward and not block.backward and not block.recomputed:
                    heap.free_pieces()
                backward = block.backward or block.recomputed
                piece = not block.recomputed and block.size < LARGEST
                chunks[block] = heap.allocate(block.size, keep_piece=piece)
                by_label[block.label] += block.size
                total += block.size
                if total > peak:
                    peak, at_peak = total, dict(by_label)
        heap.free_pieces()
    return Footprint({label: size for label, size in at_peak.items() if size}, heap.top)


def _never_freed(events: Iterable[Event]) -> set[Block]:
    blocks: set[Block] = set()
    for block, allocated in events:
        (blocks.add if allocated else blocks.discard)(block)
    return blocks
