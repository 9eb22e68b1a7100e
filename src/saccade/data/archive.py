"""Images inside .zip and .tar archives, read in place; nothing is unpacked beside the archive."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, Protocol

from saccade.contracts import Record, Sample
from saccade.data.decode import decode
from saccade.data.source import MANIFESTS, choose_records, is_image_name
from saccade.errors import DamagedFile, DataError


class _Members(Protocol):
    names: list[str]

    def read(self, name: str) -> bytes: ...


class _Zip:
    """A zip file; each thread of each process has a handle of its own."""

    def __init__(self, path: Path):
        self.path = path
        self._local = threading.local()
        self.names = [info.filename for info in self._handle().infolist() if not info.is_dir()]

    def _handle(self) -> zipfile.ZipFile:
        if getattr(self._local, "process", None) != os.getpid():
            self._local.process, self._local.file = os.getpid(), zipfile.ZipFile(self.path)
        return self._local.file

    def read(self, name: str) -> bytes:
        return self._handle().read(name)


class _Tar:
    """A tar file, indexed once and read by position. A compressed one is unpacked to an unnamed file first."""

    OPENERS: ClassVar[dict[str, Any]] = {
        ".gz": gzip.open,
        ".tgz": gzip.open,
        ".xz": lzma.open,
        ".txz": lzma.open,
        ".bz2": bz2.open,
    }

    def __init__(self, path: Path):
        opener = self.OPENERS.get(path.suffix.lower())
        self.file: BinaryIO
        if opener is None:
            self.file = path.open("rb")
        else:
            self.file = tempfile.TemporaryFile(prefix="saccade-")  # noqa: SIM115
            with opener(path, "rb") as packed:
                shutil.copyfileobj(packed, self.file, 2**20)
            self.file.seek(0)
        with tarfile.open(fileobj=self.file, mode="r:") as index:
            self.places = {m.name: (m.offset_data, m.size) for m in index if m.isreg()}
        self.names = list(self.places)

    def read(self, name: str) -> bytes:
        start, size = self.places[name]
        data = os.pread(self.file.fileno(), size, start)
        if len(data) != size:
            raise OSError(f"the archive ends inside {name}")
        return data


class ArchiveSource:
    """The images in one archive; satisfies contracts.Source. Folder rules are those of FolderSource."""

    def __init__(self, path: Path, *, manifest: Path | None = None, label: str | None = None, group: str | None = None):
        self.name = str(path)
        try:
            self._members: _Members = _Zip(path) if path.suffix.lower() == ".zip" else _Tar(path)
        except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{path}: not a whole archive", got=str(error), hint="copy it again") from error
        self._refuse_escapes()
        names = [name for name in self._members.names if is_image_name(name)]
        table = self._table(manifest)
        self.records: list[Record] = choose_records(
            names, table, explicit=manifest is not None, source=str(path), label=label, group=group
        )
        self.unlisted = len(names) - len(self.records)

    def _refuse_escapes(self) -> None:
        for name in self._members.names:
            if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts:
                raise DataError(f"{self.name}: a member points outside the archive", got=name)

    def _table(self, manifest: Path | None) -> tuple[str, bytes] | None:
        if manifest is not None:
            return str(manifest), manifest.read_bytes()
        inside = next((name for name in MANIFESTS if name in self._members.names), None)
        return (f"{self.name}:{inside}", self._members.read(inside)) if inside else None

    def __len__(self) -> int:
        return len(self.records)

    def _bytes(self, index: int) -> bytes:
        name = self.records[index].id
        try:
            return self._members.read(name)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise DamagedFile(f"{self.name}:{name}: cannot be read ({error})") from error

    def read(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(decode(self._bytes(index), f"{self.name}:{record.id}"), record)

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(self._bytes(index)).hexdigest()
