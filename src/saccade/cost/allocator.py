"""How glibc's heap grows: best fit among the gaps, neighbours joined when they are given back. No torch here.

On the CPU saccade keeps freed memory (``runtime.keep_freed_memory``), so a process never shrinks, and what counts is
how far its heap has grown. Tensors of many sizes come and go, and gaps that nothing fits into stay. ``posix_memalign``
adds to that. To align a tensor it cuts a piece off in front of it; small objects (nodes of the graph, Python's own)
move into the piece, and until they are gone at the end of the step the gap is a little too small for a tensor of the
same size. With tensors alone the gaps come out as with glibc itself (516 MiB against 515, for the tensors of a real
step); whole processes grow as if nine pieces of ten were taken or all. Here all of them are.
"""

from __future__ import annotations

from bisect import bisect_left, insort

ALIGNED, HEADER = 64, 16
PIECE = 64
LOOKS_FOR = 64  # a gap has to be larger than the tensor by this, so that an aligned place is in it


class Heap:
    """Addresses for sizes; ``top`` is how far the heap has grown."""

    def __init__(self) -> None:
        self.top = 0
        self.gaps: list[tuple[int, int]] = []  # (size, start), the smallest first
        self.starts: dict[int, int] = {}  # of gaps: size
        self.ends: dict[int, int] = {}  # of gaps: start
        self.pieces: list[int] = []

    def take(self, count: int) -> tuple[int, int]:
        """(start, end) of a chunk for so many bytes."""
        size = -(-(count + HEADER) // ALIGNED) * ALIGNED + PIECE
        at = bisect_left(self.gaps, (size + LOOKS_FOR, 0))
        if at == len(self.gaps):
            # The last gap grows, where it reaches the top.
            start = self.ends.get(self.top, self.top)
            if start != self.top:
                self._drop(start)
            self.top = max(self.top, start + size)
        else:
            gap, start = self.gaps[at]
            self._drop(start)
            if gap > size:
                self._add(start + size, gap - size)
        self.pieces.append(start)
        return start + PIECE, start + size

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

    def free_pieces(self, since: int = 0) -> None:
        """Small objects are gone: the pieces they lay in, cut off since there were so many, are free."""
        for start in self.pieces[since:]:
            self.give_back(start, start + PIECE)
        del self.pieces[since:]

    def _add(self, start: int, size: int) -> None:
        insort(self.gaps, (size, start))
        self.starts[start], self.ends[start + size] = size, start

    def _drop(self, start: int) -> None:
        size = self.starts.pop(start)
        del self.ends[start + size]
        del self.gaps[bisect_left(self.gaps, (size, start))]
