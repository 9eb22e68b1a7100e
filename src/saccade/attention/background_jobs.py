"""What a page asks of a whole slide and cannot have at once: made in the background, with how far it is, and kept.

Networks are slow over thousands of tiles, so a slide is begun once, asked after while it is on its way, and read
from memory afterwards. One is worked on at a time; the newest ones stay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from saccade.attention.explorer import Kept
from saccade.errors import SaccadeError, UsageError

Count = Callable[[int], None]
"""Hears how many tiles more have been looked at."""


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


@dataclass(frozen=True)
class State:
    """How far a slide is: ``done`` of ``total`` tiles; ``error`` is what went wrong, in words."""

    done: int
    total: int
    ready: bool
    error: str = ""


class Background(Generic[K, V]):
    """What was made of slides, up to ``limit_bytes`` of it; ``what`` names it in errors: ``tiles``, ``regions``."""

    def __init__(self, what: str, limit_bytes: int):
        self.what = what
        self._made: Kept[K, V] = Kept(limit_bytes)
        self._states: dict[K, State] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def start(self, key: K, total: int, make: Callable[[Count], V]) -> State:
        """Begin with ``make`` unless its value is there or on its way; how far it is of ``total`` tiles."""
        with self._lock:
            state = self.state(key)
            if state is not None and not state.error:
                return state
            self._states[key] = State(0, total, False)
        threading.Thread(target=self._work, args=[key, total, make], daemon=True).start()
        return self._states[key]

    def state(self, key: K) -> State | None:
        """None where nobody has asked, or where what was made had to make room."""
        found = self._states.get(key)
        return None if found is not None and found.ready and self._made.get(key) is None else found

    def found(self, key: K) -> V:
        """Raises UsageError for a slide that has not been looked at."""
        found = self._made.get(key)
        if found is None:
            raise UsageError(
                f"the {self.what} of this slide have not been looked at yet", hint="wait until all are done"
            )
        return found

    def _work(self, key: K, total: int, make: Callable[[Count], V]) -> None:
        def done(count: int) -> None:
            self._states[key] = State(min(self._states[key].done + count, total), total, False)

        try:
            with self._turn:
                made = make(done)
            self._made.put(key, made, made.nbytes)
            self._states[key] = State(total, total, True)
        except SaccadeError as error:
            self._states[key] = State(0, total, False, str(error))
        except Exception as error:
            self._states[key] = State(0, total, False, f"{type(error).__name__}: {error}")
            raise  # a fault of ours: the terminal has where it was
