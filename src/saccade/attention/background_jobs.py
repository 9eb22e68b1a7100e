"""Results over a whole slide, computed in a background thread, with progress, and kept in a bounded memory.

A network takes minutes over thousands of tiles, so the page starts a job, asks for its progress and reads the result
afterwards. One slide is processed at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from saccade.base.cache import LruCache
from saccade.errors import SaccadeError, UsageError

TilesDone = Callable[[int], None]
"""Called with the number of tiles done since the last call."""


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


@dataclass(frozen=True)
class SlideProgress:
    """Progress of one slide.

    Parameters
    ----------
    done, total : int
        Tiles processed, and tiles in all.
    ready : bool
        The result is available.
    error : str
        What went wrong; empty while nothing has.
    """

    done: int
    total: int
    ready: bool
    error: str = ""


class SlideJobs(Generic[K, V]):
    """Results of slides, most recently used first, up to ``limit_bytes``.

    Parameters
    ----------
    what : str
        What the results are, for messages: "tiles", "regions".
    limit_bytes : int
        Largest total of the results' ``nbytes``.
    """

    def __init__(self, what: str, limit_bytes: int):
        self.what = what
        self._results: LruCache[K, V] = LruCache(limit_bytes)
        self._states: dict[K, SlideProgress] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def start(self, key: K, total: int, make: Callable[[TilesDone], V]) -> SlideProgress:
        """Start a job unless its result is available or on its way.

        Parameters
        ----------
        key : hashable
            Identifies the slide and the question.
        total : int
            Number of tiles.
        make : callable
            Computes the result; calls its argument with the number of tiles done since the last call.
        """
        with self._lock:
            state = self.state(key)
            if state is not None and not state.error:
                return state
            self._states[key] = SlideProgress(0, total, False)
        threading.Thread(target=self._work, args=[key, total, make], daemon=True).start()
        return self._states[key]

    def state(self, key: K) -> SlideProgress | None:
        """Progress of a job; None if it was never started, or if its result was evicted."""
        progress = self._states.get(key)
        return None if progress is not None and progress.ready and self._results.get(key) is None else progress

    def result(self, key: K) -> V:
        """The result of a finished job.

        Raises
        ------
        UsageError
            The job has not finished.
        """
        result = self._results.get(key)
        if result is None:
            raise UsageError(
                f"the {self.what} of this slide have not been computed yet", hint="wait until all tiles are done"
            )
        return result

    def _work(self, key: K, total: int, make: Callable[[TilesDone], V]) -> None:
        def done(count: int) -> None:
            self._states[key] = SlideProgress(min(self._states[key].done + count, total), total, False)

        try:
            with self._turn:
                result = make(done)
            self._results.put(key, result, result.nbytes)
            self._states[key] = SlideProgress(total, total, True)
        except SaccadeError as error:
            self._states[key] = SlideProgress(0, total, False, str(error))
        except Exception as error:
            self._states[key] = SlideProgress(0, total, False, f"{type(error).__name__}: {error}")
            raise  # a bug: the terminal shows the traceback
