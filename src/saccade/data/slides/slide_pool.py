"""Slides by number, opened when one is asked for. Light to import: every process that reads tiles begins with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.base.cache import LruCache
from saccade.base.contracts import Record
from saccade.data.slides.slide import Slide, open_slide

OPEN_AT_ONCE = 24  # each open slide holds a cache of 32 MiB


@dataclass(frozen=True)
class SlideEntry:
    """One slide as a folder or table names it: file, record (id, label, group, split), and resolution if given."""

    path: Path
    record: Record
    mpp: float | None = None


class SlidePool:
    """Open slides of one process, the least used closed when there are many.

    dark   [S] whether each has a dark background, as was found once: finding it takes 64 reads
    """

    def __init__(self, entries: Sequence[SlideEntry], slide_mpp: float | None, dark: Sequence[bool]):
        self.entries, self.slide_mpp, self.dark = entries, slide_mpp, dark
        self._open: LruCache[int, Slide] = LruCache(OPEN_AT_ONCE)

    def __getitem__(self, number: int) -> Slide:
        slide = self._open.get(number)
        if slide is None:
            slide = open_entry(self.entries[number], self.slide_mpp, self.dark[number])
            self._open.put(number, slide)
        return slide

    def __len__(self) -> int:
        return len(self.entries)


def open_entry(entry: SlideEntry, slide_mpp: float | None, dark: bool | None = None) -> Slide:
    """A slide with the resolution of its row, of its file, or ``slide_mpp``, in this order."""
    slide = open_slide(entry.path, entry.mpp, dark=dark)
    return open_slide(entry.path, slide_mpp, dark=dark) if slide.spacing_um is None and slide_mpp is not None else slide
