"""Intervals that rest on few groups: a bootstrap over fewer than six says nothing, and that stands beside the figures.

Light to import: the pages need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEW_UNITS = 6
"""A bootstrap over fewer groups says nothing: no lead is claimed then."""
MARK = "?"


def few_units(about: Mapping[str, Any]) -> str:
    """``"3 patients"`` where the intervals rest on two to five; empty where they rest on more, or there are none.

    about   a protocol with ``units_test`` (of slides ``units``), or what classifier.json holds
    """
    units = about.get("units", about.get("units_test"))
    if not isinstance(units, int) or not 1 < units < FEW_UNITS:
        return ""
    if "units" in about:
        return f"{units} patients"
    known = about.get("groups_test")
    return f"{units} groups or images" if known is None else f"{units} groups" if known else f"{units} images"


def few_words(about: Mapping[str, Any]) -> str:
    """The sentence that explains the mark; empty where there is nothing to explain."""
    few = few_units(about)
    return f"{MARK} The test part is {few}: an interval over so few means nothing." if few else ""


def mark(about: Mapping[str, Any]) -> str:
    """What stands behind an interval: `` ?`` where it means nothing."""
    return f" {MARK}" if few_units(about) else ""
