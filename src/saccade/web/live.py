"""What is new in a run: its lines as they are written, and what the doctor says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.errors import UsageError
from saccade.methods.diagnosis import Diagnosis, shown
from saccade.reporting.html import number
from saccade.reporting.run_files import RunFiles, mapping
from saccade.train.diagnose import Doctor, settings_of


class Tail:
    """The end of a metrics.jsonl that grows. A run that went back writes a shorter one: then all is read again."""

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._identity = 0, (0, 0)

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file began anew, and the whole lines that came since the last time."""
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
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return anew, [line for one in whole.splitlines() if (line := _line(one)) is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not math.isfinite(number(found.get("step"))):
        return None
    return found


def plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as JSON knows it: there is no NaN in it."""
    return {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in line.items()}


class Watch:
    """The doctor over the lines of one run; silent where its settings are not all there, as in an older file."""

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


def said(one: Diagnosis) -> dict[str, Any]:
    """A diagnosis for the page: what, since when, why, and what to change."""
    return {
        "name": one.name,
        "since": one.since,
        "step": one.step,
        "evidence": one.evidence,
        "cause": one.cause,
        "change": ", ".join(f"--set {key}={shown(value)}" for key, value in one.change.items()),
        "advice": one.advice,
    }
