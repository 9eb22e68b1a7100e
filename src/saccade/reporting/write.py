"""RUN/report.html of a run, a hierarchy, or slide heads."""

from __future__ import annotations

from pathlib import Path

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.reporting import hierarchy_report, run_report
from saccade.reporting.run_files import read_run
from saccade.reporting.slide_report import RESULTS, write_slide_report


def write_report(run: Path) -> Path:
    """Write RUN/report.html from the files of the folder; returns its path.

    Raises
    ------
    UsageError
        The folder is not a run.
    StorageError
        The page cannot be written.
    """
    run = Path(run)
    if (run / RESULTS).exists():
        return write_slide_report(run)
    target = run / "report.html"
    text = hierarchy_report.render(run) if (run / run_folder.HIERARCHY).exists() else run_report.render(read_run(run))
    write_text(target, text.encode("utf-8", "replace").decode("utf-8"))  # names that are not UTF-8 show ?
    return target
