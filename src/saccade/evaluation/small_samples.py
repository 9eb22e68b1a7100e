"""Marks for intervals of too few test groups: a bootstrap over fewer than six is not valid.

No numpy here: pages import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEW_UNITS = 6
"""With fewer test groups, intervals are marked and no difference is called clear."""
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
    groups = about.get("groups_test")
    return f"{units} groups or images" if groups is None else f"{units} groups" if groups else f"{units} images"


def few_words(about: Mapping[str, Any]) -> str:
    """The sentence that explains the mark; empty where there is none."""
    few = few_units(about)
    return f"{MARK} The test part is {few}: an interval over so few means nothing." if few else ""


def mark(about: Mapping[str, Any]) -> str:
    """`` ?`` after an interval of too few groups, else empty."""
    return f" {MARK}" if few_units(about) else ""
