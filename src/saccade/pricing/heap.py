"""How glibc's heap grows: best fit among the gaps, neighbours joined when they are given back. No torch here.

On the CPU saccade keeps freed memory (``runtime.keep_freed_memory``), so a process never shrinks, and what counts is
how far its heap has grown. Tensors of many sizes come and go; gaps that nothing fits into stay.
"""

from __future__ import annotations

from bisect import bisect_left, insort

ALIGNED, HEADER = 64, 16
LOOKS_FOR = ALIGNED + 32 + HEADER  # what posix_memalign asks for besides, and gives back after


class Heap:
    """Addresses for sizes; ``top`` is how far the heap has grown."""

    def __init__(self) -> None:
        self.top = 0
        self.gaps: list[tuple[int, int]] = []  # (size, start), the smallest first
        self.starts: dict[int, int] = {}  # of gaps: size
        self.ends: dict[int, int] = {}  # of gaps: start

    def take(self, count: int, looks_for: int = LOOKS_FOR) -> tuple[int, int]:
        """(start, end) of a chunk for so many bytes."""
        size = -(-(count + HEADER) // ALIGNED) * ALIGNED
        at = bisect_left(self.gaps, (size + looks_for, 0))
        if at == len(self.gaps):
            # The last gap grows, where it reaches the top.
            start = self.ends.get(self.top, self.top)
            if start != self.top:
                self._drop(start)
            self.top = max(self.top, start + size)
            return start, start + size
        gap, start = self.gaps[at]
        self._drop(start)
        if gap > size:
            self._add(start + size, gap - size)
        return start, start + size

    def give_back(self, start: int, end: int) -> None:
        before = self.ends.get(start)
        if before is not None:
            self._drop(before)
            start = before
        if end in self.starts:
            after = end + self.starts[end]
            self._drop(end)
            end = after
        self._add(start, end - start)

    def _add(self, start: int, size: int) -> None:
        insort(self.gaps, (size, start))
        self.starts[start], self.ends[start + size] = size, start

    def _drop(self, start: int) -> None:
        size = self.starts.pop(start)
        del self.ends[start + size]
        del self.gaps[bisect_left(self.gaps, (size, start))]
