"""Tiles that are read on demand by child processes that work ahead; no whole slide is ever in memory.

The children exchange lines and bytes over pipes, so they need no ``__main__`` guard in a script and share no lock with
the training. They read only what is requested: the order stays a function of (seed, step) alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import DamagedFile, StorageError, TooManyDamaged

Say = Callable[[str], None]
STOPPED_S, SILENT_S = 20, 600  # seconds without a tile: from a stopped process, from any
PIPE_BYTES = 2**20  # the usual 64 KiB hold a third of a tile: the process would wait for the reader within each


@dataclass(frozen=True)
class TileSpec:
    """Format of the tiles: side in pixels after reduction, channels, number type."""

    size_px: int
    channels: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size_px, self.size_px


@dataclass
class _Child:
    """A process, and the tiles it was asked for and has not answered, in order."""

    process: subprocess.Popen[bytes]
    asked: deque[int] = field(default_factory=deque)


class _ReadyTiles:
    """Tiles that the children have read, shared by the threads that listen to them; the oldest are dropped first."""

    def __init__(self) -> None:
        self.ready: OrderedDict[int, np.ndarray | str] = OrderedDict()
        self.news = threading.Condition()
        self.broken = ""
        self.answered = 0

    def listen(self, child: _Child, spec: TileSpec) -> None:
        """Runs in a thread, one a child, until the child ends."""
        stream = cast(io.BufferedReader, child.process.stdout)
        size = int(np.prod(spec.shape)) * spec.dtype.itemsize
        while mark := stream.read(1):
            tile: np.ndarray | str
            if mark == b"\0":
                tile = np.empty(spec.shape, spec.dtype)
                if stream.readinto(tile.data.cast("B")) < size:
                    break
            else:
                tile = stream.readline().decode(errors="replace").strip()
            with self.news:
                self.ready[child.asked.popleft()] = tile
                self.answered += 1
                self.news.notify_all()
        with self.news:
            self.broken = f"a process that reads slides ended (exit code {child.process.wait()})"
            self.news.notify_all()


class TileStore:
    """Tiles of slides, read by ``workers`` processes, each with handles of its own.

    max_bad    fraction of the tiles that may fail
    leave_out  False, for training: a tile that fails is reported and replaced by another of the same request.
               True: its pixels are 0, and the caller leaves it out (``failed``) and reports it; ``max_bad`` then
               applies to each slide
    """

    def __init__(
        self, tiles: SlideTiles, spec: TileSpec, *, workers: int, max_bad: float, say: Say, leave_out: bool = False
    ):
        self.tiles, self.spec, self.dtype, self.say = tiles, spec, spec.dtype, say
        self.failed: dict[int, str] = {}
        self.max_bad, self.leave_out = max_bad, leave_out
        self._room = 0
        request = {
            "slides": [(str(entry.path), entry.mpp, dark) for entry, dark in zip(tiles.entries, tiles.slides.dark)],
            "slide_mpp": tiles.slides.slide_mpp,
            "mpp": tiles.mpp * tiles.tile_px / spec.size_px,
            "size_px": spec.size_px,
            "channels": spec.channels,
        }
        self._children = [_Child(_start(json.dumps(request))) for _ in range(workers)]
        self._board = _ReadyTiles()
        for child in self._children:
            threading.Thread(target=self._board.listen, args=(child, spec), daemon=True).start()
        self.close = weakref.finalize(self, _end, [child.process for child in self._children])

    def expect(self, numbers: Iterable[int]) -> None:
        """Let the children read these tiles ahead.

        Tiles are numbered slide by slide and row by row: each child gets neighbours, which share what is decoded.
        """
        with self._board.news:
            pending = {number for child in self._children for number in child.asked}
            new = sorted({int(n) for n in numbers} - self._board.ready.keys() - pending)
            share = math.ceil((len(pending) + len(new)) / len(self._children))
            for child in sorted(self._children, key=lambda child: len(child.asked)):
                count = max(0, share - len(child.asked))
                if new:
                    self._ask(child, new[:count])
                new = new[count:]

    def _ask(self, child: _Child, numbers: list[int]) -> None:
        assert child.process.stdin is not None
        child.asked.extend(numbers)
        places = ((self.tiles.slide_of[n], *self.tiles.coords[n]) for n in numbers)
        try:
            child.process.stdin.write("".join(f"{slide} {x} {y}\n" for slide, x, y in places).encode())
            child.process.stdin.flush()
        except OSError:
            self._board.broken = "a process that reads slides ended"

    def images(self, numbers: np.ndarray) -> np.ndarray:
        """Pixels [B C S S] of these tiles; waits until the children have them. Raises TooManyDamaged, StorageError."""
        requested = [int(number) for number in numbers]
        self._room = max(self._room, 4 * len(requested))
        self.expect(requested)
        tiles: dict[int, np.ndarray | str] = {}
        silence = 0  # seconds, counted in waits: a run that was suspended itself has not waited
        with self._board.news:
            while missing := [n for n in requested if n not in tiles]:
                tiles |= {n: self._board.ready[n] for n in missing if n in self._board.ready}
                if len(tiles) < len(set(requested)):
                    if self._board.broken:
                        raise StorageError(self._board.broken, hint="if memory ran out, lower data.workers")
                    self._refuse_silence(silence)
                    answered = self._board.answered
                    self._board.news.wait(timeout=1.0)
                    silence = silence + 1 if self._board.answered == answered else 0
            for number in requested:
                self._board.ready.move_to_end(number)
            while len(self._board.ready) > self._room:
                self._board.ready.popitem(last=False)
        return self._stacked(requested, tiles)

    def _refuse_silence(self, silence: int) -> None:
        """Raise StorageError where the processes have read nothing for too long: one is stopped, or the disk hangs."""
        late = [child.process.pid for child in self._children if child.asked]
        stopped = [pid for pid in late if silence > STOPPED_S and _is_stopped(pid)]
        if stopped or silence > SILENT_S:
            pids = ", ".join(map(str, stopped or late))
            what = "a process that reads slides is stopped" if stopped else "no tile was read"
            raise StorageError(
                f"{self.tiles.name}: {what}",
                got=f"no answer from process {pids} for {silence} s",
                hint=f"kill -CONT {pids} and --resume continue the run"
                if stopped
                else "is the disk of the slides there?",
            )

    def _stacked(self, requested: list[int], tiles: dict[int, np.ndarray | str]) -> np.ndarray:
        substitute = next((tile for tile in tiles.values() if not isinstance(tile, str)), None)
        rows = []
        for number in requested:
            tile = tiles[number]
            if isinstance(tile, str):
                self._note(number, tile)
                if self.leave_out:
                    tile = np.zeros(self.spec.shape, self.dtype)
                elif substitute is None:
                    raise DamagedFile(
                        f"{self.tiles.records[number].id}: {tile}; and no other tile of its batch can be read"
                    )
                else:
                    tile = substitute
            rows.append(tile)
        return np.stack(rows)

    def _note(self, number: int, reason: str) -> None:
        if number in self.failed:
            return
        self.failed[number] = reason
        name, bad, total = self.tiles.name, len(self.failed), len(self.tiles)
        if self.leave_out:
            slide = int(self.tiles.slide_of[number])
            name, total = str(self.tiles.entries[slide].path), len(self.tiles.grid(slide))
            bad = sum(self.tiles.slide_of[other] == slide for other in self.failed)
        else:
            self.say(f"unreadable tile replaced by another of its batch: {reason}")
        if bad > self.max_bad * total:
            raise TooManyDamaged(
                f"{name}: {bad:,} of {total:,} tiles ({bad / total:.1%} or more) cannot be read",
                got=reason.removeprefix(f"{name}: "),
                expected=f"at most {self.max_bad:.1%}",
                hint="repair or remove these slides, or raise --max-bad",
            )


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal; False where the system does not say."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"


def _start(request: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "saccade.data.slides.tile_worker"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # refused to a user with many pipes: then a tile takes several pieces
            for pipe in (child.stdin, child.stdout):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    child.stdin.write(request.encode() + b"\n")
    child.stdin.flush()
    return child


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
        child.wait()
