"""Writing files: under a temporary name first, so that a reader sees the old file or the new one, never half.

Every writer of saccade goes through ``atomic_file`` or ``atomic_folder``: a temporary name of its own in the same
folder, fsync, rename, fsync of the folder. Two writers of one path cannot destroy each other's file; the last one wins.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from saccade.errors import StorageError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
TEMPORARY = ".tmp-"
"""How temporary names begin; what a killed process leaves behind is recognised by it."""


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses, with the same ending (writers choose a format by it)."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name[-100:]}")  # names may have 255 bytes


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` when the block ends without an exception.

    Parameters
    ----------
    path : Path
        The file to write. Its folders are made.

    Yields
    ------
    Path
        A path in the same folder with the same suffix.

    Raises
    ------
    StorageError
        Where the block or the rename raises OSError. An older file at ``path`` is untouched and the temporary one is
        removed, after any exception.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_file(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("text")
    >>> (folder / "a.txt").read_text()
    'text'
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace_file(temporary, path)
    except BaseException as error:
        discard(temporary)
        if not isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """As ``atomic_file`` for a whole folder: a temporary folder, which replaces ``folder`` when the block ends.

    An older folder is removed once the new one is on disk.
    """
    temporary, older = temporary_name(folder), temporary_name(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        if folder.exists() and _exchange(temporary, folder):
            older = temporary
        else:
            if folder.exists():
                folder.rename(older)
            temporary.rename(folder)
        _flush_folder(folder.parent)
        shutil.rmtree(older, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if older.exists() and not folder.exists():
            older.rename(folder)
        if not isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        raise cannot_write(folder, error) from error


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step, so that neither name is ever missing; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def replace_file(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, on disk and for good. Raises OSError."""
    _flush(temporary)
    temporary.replace(path)
    _flush_folder(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system can flush folders."""
    with contextlib.suppress(OSError):  # the file is there already
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """``write(temporary)`` inside ``atomic_file``. Returns ``path``; raises StorageError."""
    with atomic_file(path) as temporary:
        write(temporary)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8, see ``atomic_file``. Returns ``path``; raises StorageError."""
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> Path:
    """Write bytes, see ``atomic_file``. Returns ``path``; raises StorageError."""
    return write_file(path, lambda temporary: temporary.write_bytes(data))


def discard(temporary: Path) -> None:
    """Remove a temporary file; a missing file, or one that cannot be removed, is not an error."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process left in ``folder``. Call it with the lock held."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            discard(path)


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents. Returns it; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def check_writable(path: str | Path) -> None:
    """Raise StorageError unless a file or folder can be written at ``path``; nothing is created.

    Long computations call it first. A temporary folder in the nearest existing parent is the test: only the system
    knows what may be written where.
    """
    target = Path(path).absolute()
    parent = next(folder for folder in (target, *target.parents) if folder.exists())
    if parent == target and not target.is_dir():
        parent = target.parent
    try:
        Path(tempfile.mkdtemp(prefix=".saccade-", dir=parent)).rmdir()
    except OSError as error:
        raise cannot_write(target, error) from error


def cannot_write(path: Path, error: Exception) -> StorageError:
    """The error for a path that cannot be written: why not, and how much space is free there."""
    reason = (error.strerror if isinstance(error, OSError) else "the name cannot be encoded as UTF-8") or str(error)
    return StorageError(f"cannot write {path}", got=reason, hint=free_space(path))


def free_space(path: Path) -> str:
    """A hint for a full disk: how much is free where ``path`` is to be written."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), path)
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.total:  # /proc and the like report zero
            return f"free some space ({usage.free / 2**20:,.0f} MiB are free in {folder}) or choose another path"
    return "choose another path"
