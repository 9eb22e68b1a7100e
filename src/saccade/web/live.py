"""New lines of a run's metrics as they are written, and the doctor's findings on them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.errors import UsageError
from saccade.methods.diagnosis import Diagnosis, format_value
from saccade.reporting.html import number
from saccade.reporting.run_files import RunFiles, mapping
from saccade.train.diagnose import Doctor, settings_of


class Tail:
    """The end of a growing metrics.jsonl. A resumed run may write a shorter one: then all is read again."""

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._identity = 0, (0, 0)

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was rewritten, and the complete lines since the last call."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                identity = (status.st_dev, status.st_ino)
                anew = self._offset > 0 and (status.st_size < self._offset or identity != self._identity)
                self._identity = identity
                if anew:
                    self._offset = 0
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return False, []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return anew, [line for line_bytes in complete.splitlines() if (line := _line(line_bytes)) is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict) or not math.isfinite(number(record.get("step"))):
        return None
    return record


def plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as JSON allows it, without NaN."""
    return {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in line.items()}


class Watch:
    """The doctor on the lines of one run; inactive where settings are missing, as in older runs."""

    def __init__(self, run: RunFiles):
        method = run.setting("train", "method")
        self._doctor: Doctor | None = None
        if not all(isinstance(run.config.get(name), Mapping) for name in ("train", "optim", method)):
            return
        try:
            settings = settings_of(run.config, int(number(mapping(run.data).get("used", 0))))
        except (KeyError, TypeError, ValueError, UsageError):
            return
        self._doctor = Doctor(settings, [], stop=False)

    def look(self, line: Mapping[str, Any]) -> list[Diagnosis]:
        if self._doctor is None:
            return []
        return self._doctor.look({key: number(value) for key, value in line.items()})


def diagnosis_record(diagnosis: Diagnosis) -> dict[str, Any]:
    """A finding for the page: name, first step, evidence, likely cause and change."""
    return {
        "name": diagnosis.name,
        "since": diagnosis.since,
        "step": diagnosis.step,
        "evidence": diagnosis.evidence,
        "cause": diagnosis.cause,
        "change": ", ".join(f"--set {key}={format_value(value)}" for key, value in diagnosis.change.items()),
        "advice": diagnosis.advice,
    }
