"""Feature tables computed from the page: the same as ``saccade embed``, written into the run's folder.

It is the only thing the page writes. The work is done in a separate process, one at a time, and can be stopped.
"""

from __future__ import annotations

import threading
from pathlib import Path

from saccade.base.jobs import NONE, Job, Report, State
from saccade.errors import UsageError
from saccade.web.catalog import CatalogRun
from saccade.web.shell_commands import Columns, learned_from

TABLE = "features.parquet"


class ProgressConsole:
    """A console (train/loop) that forwards progress and drops messages."""

    def __init__(self, report: Report):
        self.report = report

    def say(self, text: str) -> None:
        return

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        self.report(step / total, f"{'embedding' if logs else 'reading'} {step:,} of {total:,}")


def _embed(report: Report, run: str, data: str, columns: Columns) -> None:
    """Runs in a separate process."""
    from saccade.tasks.embed import LabelOptions, embed

    labels = Path(columns["labels"]) if columns["labels"] else None
    label_options = LabelOptions(labels=labels, label=columns["label"], group=columns["group"])
    embed(run, data, out=Path(run) / TABLE, labels=label_options, console=ProgressConsole(report))


class EmbedJobs:
    """The running and finished jobs, by run."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def state(self, run: CatalogRun) -> State:
        job = self._jobs.get(run.id)
        return job.state() if job is not None else NONE

    def start(self, run: CatalogRun) -> State:
        """Start unless it is running.

        Raises
        ------
        UsageError
            Another job is running, or the run does not record its data.
        """
        with self._lock:
            if self.state(run).state == "running":
                return self.state(run)
            if any(job.state().state == "running" for job in self._jobs.values()):
                raise UsageError("a feature table of another run is being computed", hint="wait for it, or stop it")
            data, columns = learned_from(run.folder)
            if not data:
                raise UsageError("the run does not record its data", hint="use saccade embed MODEL DATA")
            self._jobs[run.id] = Job(_embed, str(run.folder), data, columns)
            return self.state(run)

    def stop(self, run: CatalogRun) -> State:
        if run.id in self._jobs:
            self._jobs[run.id].cancel()
        return self.state(run)
