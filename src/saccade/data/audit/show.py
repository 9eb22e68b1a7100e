"""What ``saccade show`` does: each kind of source has its own audit, and pictures a sheet."""

from __future__ import annotations

from pathlib import Path

from saccade.base.contracts import Source
from saccade.data.audit.contact_sheet import contact_sheet
from saccade.data.audit.grids import GridAudit, audit_grids
from saccade.data.audit.images import Audit, audit
from saccade.data.audit.slides import SlideAudit, audit_slides, slide_sheet
from saccade.data.feature_grids import GridSource
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import UsageError


def show_source(source: Source, *, max_bad: float, sheet: Path | None) -> Audit | SlideAudit | GridAudit:
    """Audit a source by its kind.

    Parameters
    ----------
    source : Source
    max_bad : float
        Fraction of damaged files above which the audit fails.
    sheet : Path or None
        Where to write a contact sheet (PNG).

    Returns
    -------
    Audit, SlideAudit or GridAudit

    Raises
    ------
    TooManyDamaged
        More files than ``max_bad`` are damaged.
    UsageError
        A contact sheet is asked of feature grids.
    """
    if isinstance(source, SlideTiles):
        slides = audit_slides(source, max_bad=max_bad)
        if sheet is not None:
            slide_sheet(source, sheet)
        return slides
    if isinstance(source, GridSource):
        if sheet is not None:
            raise UsageError("--sheet has no effect on features: vectors have no picture", hint="show the slides")
        return audit_grids(source, max_bad=max_bad)
    report = audit(source, max_bad=max_bad)
    if sheet is not None:
        contact_sheet(source, sheet)
    return report
