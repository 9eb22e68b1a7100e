"""SHA-256 digests of what is kept: ``digests.json`` beside the files of a folder, so that later damage is noticed.

A flipped bit in a weight is not an error to any reader: the file opens and the model is another one. Checkpoints and
model folders therefore carry the digest of each of their files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.base.files import write_text
from saccade.errors import DamagedFile

FILE = "digests.json"


@dataclass(frozen=True)
class Digests:
    """SHA-256 by file name, and facts on the folder such as the run and the step of a checkpoint."""

    files: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        values = {"about": self.about, "sha256": self.files}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return json.dumps(values | {"sha256 of this record": digest}, indent=1, sort_keys=True) + "\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path, **about: Any) -> None:
    """Record the digest of every file directly in ``folder``. Raises StorageError."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != FILE]
    digests = Digests({path.name: sha256_of(path) for path in paths if not path.name.startswith(".")}, about)
    write_text(folder / FILE, digests.text())


def read_digests(folder: Path) -> Digests | None:
    """The digests of a folder; None where it has none, as in version 0.1.

    Raises
    ------
    DamagedFile
        ``digests.json`` is not as it was written.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        digests = Digests(dict(values["sha256"]), dict(values["about"]))
        if digests.text() != text:
            raise ValueError("its text was changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged", got=str(error) or type(error).__name__) from error
    return digests


def damaged_files(folder: Path, digests: Digests) -> list[Path]:
    """The files of a folder that are missing or differ from their digests."""
    paths = {folder / name: digest for name, digest in digests.files.items()}
    return [path for path, digest in paths.items() if not path.is_file() or sha256_of(path) != digest]
