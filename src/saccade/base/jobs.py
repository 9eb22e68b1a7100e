"""A job in a separate process: its progress, its result, and a way to cancel it at any time."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from saccade.errors import SaccadeError

Report = Callable[[float, str], None]
"""Called with the fraction that is done, 0..1, and a text on what is being done."""


@dataclass(frozen=True)
class State:
    """The state of a job: "none", "running", "done", "failed" or "cancelled".

    Parameters
    ----------
    share
        Fraction that is done, 0..1.
    text
        What is being done, or the error.
    seconds
        Time since the start.
    """

    state: str
    share: float
    text: str
    seconds: float


NONE = State("none", 0.0, "", 0.0)
"""Of a job that has not been started."""


def _serve(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the child: do the work, report its progress, send its result."""

    def report(share: float, text: str) -> None:
        pipe.send(("progress", share, text))

    try:
        pipe.send(("done", work(report, *arguments), ""))
    except SaccadeError as error:
        pipe.send(("failed", str(error), ""))
    except Exception as error:  # whatever a library raises is reported to the parent
        pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))


class Job:
    """``work(report, *arguments)`` in a separate process. ``result`` is what it returned, None until then.

    The function and its arguments are pickled: a function of a module, and plain values.
    """

    def __init__(self, work: Callable[..., Any], *arguments: Any):
        self.result: Any = None
        self._began = time.monotonic()
        self._state = State("running", 0.0, "starting", 0.0)
        self._lock = threading.Lock()
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._pipe, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(sender, work, arguments), daemon=True)
        self._process.start()
        sender.close()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                what, value, text = self._pipe.recv()
            except (EOFError, OSError):
                self._settle("failed", 0.0, "its process ended without a result")
                break
            if what == "progress":
                self._settle("running", float(value), text)
                continue
            if what == "done":
                self.result = value
            self._settle(what, 1.0 if what == "done" else 0.0, "done" if what == "done" else value)
            break
        self._process.join()

    def _settle(self, state: str, share: float, text: str) -> None:
        """Set the state, unless the job has ended."""
        with self._lock:
            if self._state.state == "running":
                self._state = State(state, share, text, round(time.monotonic() - self._began, 1))

    def state(self) -> State:
        with self._lock:
            if self._state.state != "running":
                return self._state
            return replace(self._state, seconds=round(time.monotonic() - self._began, 1))

    def cancel(self) -> None:
        """End the process. A finished job stays finished."""
        self._settle("cancelled", 0.0, "cancelled")
        if self._process.is_alive():
            self._process.terminate()

    def wait(self, seconds: float) -> State:
        """The state at the end of the job, or after so many seconds."""
        end = time.monotonic() + seconds
        while self._state.state == "running" and time.monotonic() < end:
            time.sleep(0.05)
        return self._state
