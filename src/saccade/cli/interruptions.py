"""The exit code of a run that was interrupted: 130 after SIGINT, 143 after SIGTERM, as shells have it."""

from __future__ import annotations

import os
import signal
import threading

import typer


class Interruptions:
    """Notes SIGINT and SIGTERM while a run saves and ends by itself (train/loop.py), for the exit code afterwards."""

    def __init__(self) -> None:
        self._pipe: tuple[int, int] | None = None
        self._previous = -1
        self.signals: list[int] = []

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe2(os.O_NONBLOCK) if hasattr(os, "pipe2") else None
        if self._pipe is not None:
            self._previous = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._previous)
        reading, writing = self._pipe
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            self.signals = [number for number in file.read() if number in (signal.SIGINT, signal.SIGTERM)]

    def check(self) -> None:
        """Exit with 128 plus the number of the first signal, where there was one."""
        if self.signals:
            raise typer.Exit(128 + self.signals[0])
