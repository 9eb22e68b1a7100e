"""RUN/report.html, of whatever the folder holds: a run, a hierarchy, or heads for slides."""

from __future__ import annotations

from pathlib import Path

from saccade import runs
from saccade.reporting import build, hierarchy
from saccade.reporting.files import read_run
from saccade.reporting.slides import FOUND, write_slide_report


def write_report(run: Path) -> Path:
    """Write RUN/report.html from the files of the folder; returns its path.

    Raises UsageError when the folder is no run, StorageError when the page cannot be written.
    """
    run = Path(run)
    if (run / FOUND).exists():
        return write_slide_report(run)
    target = run / "report.html"
    text = hierarchy.render(run) if (run / runs.HIERARCHY).exists() else build.render(read_run(run))
    runs.write_atomic(target, text)
    return target
