"""One writer at a time: a lock on a folder or a file that is to be written, held from before anything is read.

The lock is the system's own (``flock``), so it ends with its process, however that ends. Beside it lies a record of
the owner: process, host and start. The record of a process that died on this host is replaced. A record of another
host is respected even where the lock is free, because some network file systems do not carry ``flock`` between hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from saccade.base.files import cannot_write, discard, make_folder, write_text
from saccade.errors import OutputInUse

LOCK, OWNER = ".lock", ".lock.owner"
"""Names in a locked folder; beside a locked file they follow its own name."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock. ``since``: local time, ISO 8601."""

    pid: int
    host: str
    since: str

    def text(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; it is made where it does not exist, and removed again if it stays empty.

    Raises
    ------
    OutputInUse
        Another process (or another thread of this one) writes there; the message names it.
    StorageError
        The folder cannot be made or written.
    """
    created = not folder.exists()
    make_folder(folder)
    try:
        with _hold(folder, folder / LOCK, folder / OWNER):
            yield
    finally:
        if created:
            with contextlib.suppress(OSError):  # not empty: the usual case
                folder.rmdir()


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the file ``path`` for writing, by a lock beside it. Raises as ``lock_folder``."""
    make_folder(path.parent)
    with _hold(path, path.with_name(f".{path.name}{LOCK}"), path.with_name(f".{path.name}{OWNER}")):
        yield


@contextlib.contextmanager
def _hold(target: Path, lock: Path, record: Path) -> Iterator[None]:
    mutex = FileLock(lock, timeout=0)
    try:
        mutex.acquire()
    except Timeout:
        raise _in_use(target, _read_owner(record)) from None
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        owner = _read_owner(record)
        if owner is not None and owner.host != socket.gethostname():
            raise _in_use(target, owner, record)
        started = time.strftime("%Y-%m-%dT%H:%M:%S")
        write_text(record, json.dumps(asdict(Owner(os.getpid(), socket.gethostname(), started))))
        try:
            yield
        finally:
            discard(record)
            discard(lock)  # while it is held: whoever opened it meanwhile sees that it has gone
    finally:
        mutex.release()


def _read_owner(record: Path) -> Owner | None:
    try:
        return Owner(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or half of one
        return None


def _in_use(target: Path, owner: Owner | None, record: Path | None = None) -> OutputInUse:
    wait = "wait until it ends, or choose another --out"
    if record is not None:
        wait = f"if that process no longer runs, delete {record} and try again"
    return OutputInUse(
        f"another process writes to {target}", got=owner.text() if owner else "an unknown process", hint=wait
    )


def is_lock(path: Path) -> bool:
    """Whether a path is one of the two files of a lock."""
    return path.name.endswith((LOCK, OWNER)) and path.name.startswith(".")
