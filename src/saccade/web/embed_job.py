"""Feature tables made from the page: what ``saccade embed`` would write into the run's folder, when somebody asks.

It is the only thing the page writes. The work is done by a process of its own, one at a time, and can be stopped.
"""

from __future__ import annotations

import threading
from pathlib import Path

from saccade.base.jobs import NONE, Job, Report, State
from saccade.errors import UsageError
from saccade.web.catalog import RunOnDesk
from saccade.web.shell_commands import Columns, learned_from

TABLE = "features.parquet"


class _Told:
    """A console (train/loop) that hands on how far it is; what is said in words stays unsaid."""

    def __init__(self, report: Report):
        self.report = report

    def say(self, text: str) -> None:
        return

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        self.report(step / total, f"{'looking at' if logs else 'reading'} {step:,} of {total:,}")


def _embed(report: Report, run: str, data: str, columns: Columns) -> None:
    """In a process of its own."""
    from saccade.tasks.embed import LabelOptions, embed

    labels = Path(columns["labels"]) if columns["labels"] else None
    label_options = LabelOptions(labels=labels, label=columns["label"], group=columns["group"])
    embed(run, data, out=Path(run) / TABLE, labels=label_options, console=_Told(report))


class Making:
    """The tables that are being made, by run."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def state(self, run: RunOnDesk) -> State:
        job = self._jobs.get(run.id)
        return job.state() if job is not None else NONE

    def start(self, run: RunOnDesk) -> State:
        """Begin, unless it is on its way. Raises UsageError where another is, or the run does not say its images."""
        with self._lock:
            if self.state(run).state == "running":
                return self.state(run)
            if any(job.state().state == "running" for job in self._jobs.values()):
                raise UsageError("a feature table is being made for another run", hint="wait for it, or stop it")
            data, columns = learned_from(run.folder)
            if not data:
                raise UsageError("the run does not say what it learned from", hint="saccade embed MODEL DATA does it")
            self._jobs[run.id] = Job(_embed, str(run.folder), data, columns)
            return self.state(run)

    def stop(self, run: RunOnDesk) -> State:
        if run.id in self._jobs:
            self._jobs[run.id].cancel()
        return self.state(run)
