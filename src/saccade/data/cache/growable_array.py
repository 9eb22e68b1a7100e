"""One flat array that grows while images are decoded."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np

from saccade.errors import StorageError


class GrowingArray:
    """Grows one flat array, without a second copy; moves to an unnamed file when it passes the memory limit."""

    def __init__(self, memory_limit_mib: float):
        self.limit = memory_limit_mib * 2**20
        self.flat: np.ndarray | None = None
        self.held = 0
        self.file: IO[bytes] | None = None

    def add(self, pixels: np.ndarray) -> None:
        values = pixels.reshape(-1)
        if self.flat is None:
            self.flat = np.empty(values.size, values.dtype)
        if self.held + values.size > self.flat.size:  # in place: the system moves large blocks without copying them
            self.flat.resize(max(self.held + values.size, int(1.2 * self.flat.size)), refcheck=False)
        self.flat[self.held : self.held + values.size] = values
        self.held += values.size
        if self.held * values.itemsize > self.limit:
            self._spill()

    def _spill(self) -> None:
        assert self.flat is not None
        try:
            if self.file is None:
                # Without a name, so that nothing stays behind however the process ends.
                self.file = tempfile.TemporaryFile(prefix="saccade-cache-")  # noqa: SIM115
            self.flat[: self.held].tofile(self.file)
            self.file.flush()
        except OSError as error:
            raise StorageError(
                f"the decoded images do not fit in {tempfile.gettempdir()}",
                got=error.strerror,
                hint="set TMPDIR to a larger disk, or lower data.cache_px",
            ) from error
        self.held = 0

    def array(self, kind: np.dtype) -> np.ndarray:
        assert self.flat is not None
        if self.file is None:
            self.flat.resize(self.held, refcheck=False)
            return self.flat
        self._spill()
        return np.memmap(self.file, dtype=kind, mode="r")
