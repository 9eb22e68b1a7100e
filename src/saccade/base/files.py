"""One way to write a file: under another name until it is whole, and with an error that says what can be done.

What takes long to compute asks first whether its place can be written, so that nothing is computed for nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from saccade.errors import StorageError


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Make the folders of ``path`` and the file itself: ``write`` is given a name beside it, with the same ending.

    A reader sees the old file or the new one, never half. Raises StorageError; nothing is left behind then.
    """
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except BaseException as error:
        discard(temporary)
        if not isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        raise cannot_write(path, error) from error
    return path


def discard(temporary: Path) -> None:
    """Remove what was begun, if it was: where its folder cannot be written, it is not there either."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        temporary.unlink()


def write_text(path: Path, text: str) -> Path:
    """As ``write_file``, in UTF-8."""
    return write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> Path:
    return write_file(path, lambda place: place.write_bytes(data))


def make_folder(folder: Path) -> Path:
    """Raises StorageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def check_place(path: str | Path) -> None:
    """Raise StorageError unless something can be written at ``path``, or into it. Nothing of it is made.

    Tried in the nearest folder that is there: what may be written, and where, only the system knows.
    """
    place = Path(path).absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if there == place and not place.is_dir():
        there = place.parent
    try:
        Path(tempfile.mkdtemp(prefix=".saccade-", dir=there)).rmdir()
    except OSError as error:
        raise cannot_write(place, error) from error


def cannot_write(path: Path, error: Exception) -> StorageError:
    """The one way it is said that a place cannot be written."""
    reason = (error.strerror if isinstance(error, OSError) else "its name is no text in UTF-8") or str(error)
    return StorageError(f"cannot write {path}", got=reason, hint=_room(path))


def _room(path: Path) -> str:
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), path)
    with contextlib.suppress(OSError):
        room = shutil.disk_usage(there)
        if room.total:  # else no disk: /proc
            return f"name another place, or make room: {room.free / 2**20:,.0f} MiB are free in {there}"
    return "name another place"
