"""Schedules over a run. No torch here."""

from __future__ import annotations

import math


def cosine_schedule(start: float, end: float, fraction: float) -> float:
    """Half a cosine from ``start`` (fraction 0) to ``end`` (fraction 1 and above); Loshchilov and Hutter 2017.

    Examples
    --------
    >>> cosine_schedule(1.0, 0.0, 0.5)
    0.5
    >>> round(cosine_schedule(0.996, 1.0, 1.0), 3)
    1.0
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction))))
