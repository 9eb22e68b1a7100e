"""Images or volumes inside .zip and .tar archives, read in place; nothing is unpacked beside the archive."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

from saccade.data.formats import has_suffix
from saccade.data.limits import SMALL_IMAGE, SMALL_VOLUME, check_claim, check_ratio, check_table, damage_named
from saccade.data.sources.files import FileSource
from saccade.data.sources.names import by_normal_name
from saccade.data.sources.source import choose_records
from saccade.data.sources.tables import MANIFESTS, Table, read_rows, read_table
from saccade.data.sources.volume_files import Contents, visible
from saccade.errors import DamagedFile, DataError

XZ_MEMORY = 256 * 2**20  # bytes of a dictionary; xz -9 uses 64 MiB
BROKEN = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


class _Members(Protocol):
    sizes: dict[str, int]
    stored: dict[str, int]

    def read(self, name: str, most: int | None = None) -> bytes: ...


class _Zip:
    """A zip file; each thread of each process has a handle of its own."""

    def __init__(self, path: Path):
        self.path = path
        self._local = threading.local()
        infos = {info.filename: info for info in self._handle().infolist() if not info.is_dir()}
        self.infos = {name: infos[stored] for name, stored in by_normal_name(infos).items()}
        self.sizes = {name: info.file_size for name, info in self.infos.items()}
        self.stored = {name: info.compress_size for name, info in self.infos.items()}

    def _handle(self) -> zipfile.ZipFile:
        if getattr(self._local, "process", None) != os.getpid():
            self._local.process, self._local.file = os.getpid(), zipfile.ZipFile(self.path)
        return self._local.file

    def read(self, name: str, most: int | None = None) -> bytes:
        with self._handle().open(self.infos[name]) as member:
            return member.read() if most is None else member.read(most)


class _Tar:
    """A tar file, indexed once and read by position, which needs no lock and survives a fork.

    A compressed one is unpacked to an unnamed file first.
    """

    OPENERS: ClassVar[dict[bytes, Callable[..., Any]]] = {
        b"\x1f\x8b": gzip.GzipFile,
        b"\xfd7zXZ\0": lzma.LZMAFile,
        b"BZh": bz2.BZ2File,
    }

    def __init__(self, path: Path):
        with path.open("rb") as file:
            start = file.read(6)
        opener = next((opener for magic, opener in self.OPENERS.items() if start.startswith(magic)), None)
        self.file: BinaryIO
        if opener is None:
            self.file = path.open("rb")
        else:
            self.file = tempfile.TemporaryFile(prefix="saccade-")  # noqa: SIM115
            _unpack(path, opener, self.file)
            self.file.seek(0)
        with tarfile.open(fileobj=self.file, mode="r:") as index:
            places = {member.name: (member.offset_data, member.size) for member in index if member.isreg()}
        self.places = {name: places[stored] for name, stored in by_normal_name(places).items()}
        self.sizes = {name: size for name, (_, size) in self.places.items()}
        self.stored = self.sizes

    def read(self, name: str, most: int | None = None) -> bytes:
        start, size = self.places[name]
        size = size if most is None else min(size, most)
        data = os.pread(self.file.fileno(), size, start)
        if len(data) != size:
            raise OSError(f"the archive ends inside {name}")
        return data


def _unpack(path: Path, opener: Callable[..., Any], target: BinaryIO) -> None:
    """Unpack a file, as long as what is written is no more than the limits allow for what was read."""
    total = 0
    with path.open("rb") as stored, opener(fileobj=stored) if opener is gzip.GzipFile else opener(stored) as packed:
        while piece := packed.read(2**20):
            total += len(piece)
            check_ratio(total, stored.tell(), str(path))
            target.write(piece)


def _open(path: Path) -> _Members:
    try:
        return _Zip(path) if path.suffix.lower() == ".zip" else _Tar(path)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"{path}: no room to unpack it",
                got=f"temporary folder {tempfile.gettempdir()} is full",
                hint="set TMPDIR to a folder with more room, or unpack the archive yourself",
            ) from error
        raise DataError(f"{path}: incomplete archive", got=str(error), hint="copy it again") from error


class ArchiveSource(FileSource):
    """The images or volumes in one archive. Folder rules are those of FolderSource.

    A table is also found in the one top folder that many archives have.
    """

    def __init__(
        self,
        path: Path,
        *,
        manifest: Path | None = None,
        label: str | None = None,
        group: str | None = None,
        keep_na: bool = False,
    ):
        self.name = str(path)
        self._members = _open(path)
        self._refuse_escapes()
        contents = Contents(str(path), self._bytes, list(self._members.sizes))
        chosen = choose_records(
            contents,
            read_table(manifest) if manifest is not None else self._own_table(),
            explicit=manifest is not None,
            locate=lambda _: None,
            label=label,
            group=group,
            keep_na=keep_na,
        )
        super().__init__(contents, chosen)

    def _refuse_escapes(self) -> None:
        for name in self._members.sizes:
            parts = name.replace("\\", "/").split("/")
            if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
                raise DataError(f"{self.name}: a member has a path outside the archive", got=name)

    def _own_table(self) -> Table | None:
        sizes = self._members.sizes
        tops = {name.partition("/")[0] for name in sizes if visible(name)}
        for base in ("", *(tops if len(tops) == 1 else ())):
            for table in MANIFESTS:
                inside = posixpath.join(base, table)
                if inside in sizes:
                    name = f"{self.name}:{inside}"
                    check_table(sizes[inside], name)
                    return Table(name, read_rows(self._bytes(inside), name), base)
        return None

    def _bytes(self, name: str, most: int | None = None) -> bytes:
        if name not in self._members.sizes:
            raise DamagedFile(f"{self.name}:{name}: not in the archive")
        size = self._members.sizes[name] if most is None else min(most, self._members.sizes[name])
        small = SMALL_VOLUME if has_suffix(name, "volume", shared=False) else SMALL_IMAGE
        check_claim(size, self._members.stored[name], f"{self.name}:{name}", small=small)
        with damage_named(f"{self.name}:{name}"):
            return self._members.read(name, most)
