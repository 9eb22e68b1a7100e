"""Images in a folder: flat, ``CLASS/file``, ``SPLIT/CLASS/file``, or listed in a manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from saccade.contracts import Record, Sample
from saccade.data.decode import decode
from saccade.data.source import MANIFESTS, choose_records, is_image_name
from saccade.errors import DamagedFile, DataError


class FolderSource:
    """Every image below ``root``; satisfies contracts.Source.

    manifest  a table whose paths are relative to its own folder; None uses one that lies in ``root``
    label, group  columns of the table to use
    """

    def __init__(self, root: Path, *, manifest: Path | None = None, label: str | None = None, group: str | None = None):
        self.name = str(root)
        self.root = root
        names = [name for name in _below(root) if is_image_name(name)]
        found = manifest or next((root / name for name in MANIFESTS if (root / name).is_file()), None)
        table = None
        if found is not None:
            if not found.is_file():
                raise DataError("manifest not found", got=found)
            table = (str(found), found.read_bytes())
        self.records: list[Record] = choose_records(
            names, table, explicit=manifest is not None, source=str(root), label=label, group=group
        )
        self.unlisted = len(names) - len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def _bytes(self, index: int) -> bytes:
        path = self.root / self.records[index].id
        try:
            return path.read_bytes()
        except OSError as error:
            raise DamagedFile(f"{path}: cannot be read ({error.strerror})") from error

    def read(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(decode(self._bytes(index), str(self.root / record.id)), record)

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(self._bytes(index)).hexdigest()


def _below(root: Path) -> list[str]:
    """Names of all files below ``root``, relative, with ``/``."""
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        base = Path(folder).relative_to(root)
        found += [(base / file).as_posix() for file in files]
    return found
