"""Images or volumes in a folder: flat, ``CLASS/file``, ``SPLIT/CLASS/file``, or listed in a manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from saccade.data.sources.files import FileSource
from saccade.data.sources.names import by_normal_name
from saccade.data.sources.source import choose_records
from saccade.data.sources.tables import read_table, table_in
from saccade.data.sources.volume_files import Contents
from saccade.errors import DamagedFile, DataError


class FolderSource(FileSource):
    """Every image or volume below ``root``.

    only      names of files to look at, relative to ``root``; None looks at all
    manifest  a table whose paths are relative to ``root`` or to its own folder; None uses one that lies in ``root``
    label, group  columns of the table to use; ``keep_na`` as in ``open_source``
    """

    def __init__(
        self,
        root: Path,
        *,
        only: Sequence[str] | None = None,
        manifest: Path | None = None,
        label: str | None = None,
        group: str | None = None,
        keep_na: bool = False,
    ):
        self.name = str(root)
        self.root = root
        self._stored = by_normal_name(files_below(root) if only is None else only)
        contents = Contents(str(root), self._fetch, list(self._stored))
        table_path = manifest or table_in(root)

        def locate(path: str) -> str | None:
            """Rows may also point outside the root, or be absolute."""
            file = table_path.parent / path if table_path else None
            return Path(os.path.relpath(file, root)).as_posix() if file and file.is_file() else None

        chosen = choose_records(
            contents,
            read_table(table_path) if table_path else None,
            explicit=manifest is not None,
            locate=locate,
            label=label,
            group=group,
            keep_na=keep_na,
        )
        super().__init__(contents, chosen)

    def _fetch(self, name: str, most: int | None = None) -> bytes:
        path = self.root / self._stored.get(name, name)
        try:
            with path.open("rb") as file:
                return file.read(-1 if most is None else most)
        except OSError as error:
            raise DamagedFile(f"{path}: cannot be read ({error.strerror})") from error


def files_below(root: Path) -> list[str]:
    """Names of all files below ``root``, relative, with ``/``. Links are followed, each real folder once."""

    def refuse(error: OSError) -> None:
        raise DataError("folder cannot be read", got=f"{error.filename} ({error.strerror})") from error

    names: list[str] = []
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(root)
        names += [(base / file).as_posix() for file in sorted(files)]
    return names
