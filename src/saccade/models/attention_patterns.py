"""Patterns of sparse and local attention over a grid of patches: which queries see which keys. No torch here.

    full              every token sees every token
    window:K          the grid is cut into windows of K along each axis, and a token sees its own; in every second layer
                      the cuts are moved by K // 2 (as in Swin, Liu et al. 2021, but windows at the border are smaller)
    neighbourhood:K   the K nearest along each axis, K odd; at the border the K that are nearest to it (Hassani et al.
                      2023, arXiv:2204.07143)
    axial             its own row and its own column, in one softmax (Ho et al. 2019, arXiv:1912.12180, take rows and
                      columns in turn, layer by layer; here every layer sees both)
    strided:S         its own window of S, and every token with the same rest modulo S along each axis, in one softmax
                      (the sparse transformer, Child et al. 2019, arXiv:1904.10509)

Along any number of axes. Class and register tokens see everything and are seen by everything. A pattern is computed in
parts; a part is a product over the axes of segments: some queries along an axis, with the keys that any of them needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.errors import UsageError, unknown

WITH_REACH = {"full": False, "window": True, "neighbourhood": True, "axial": False, "strided": True}
TILE = 8  # queries of a neighbourhood that share their keys, along an axis: fewer compute less, more multiply faster
VOLUME_TILE = 4  # the same where there are three axes: 64 queries a tile, as many as in an image
Segment = tuple[list[int], list[int]]
"""Positions along one axis: of the queries, and of the keys."""


@dataclass(frozen=True)
class Pattern:
    """A pattern: its kind, and its size in patches (0 where it has none).

    Examples
    --------
    >>> str(Pattern("window", 7))
    'window:7'
    """

    kind: str
    reach: int = 0

    def __str__(self) -> str:
        return self.kind + (f":{self.reach}" if self.reach else "")


FULL = Pattern("full")


def parse_pattern(text: str) -> Pattern:
    """Read the name of a pattern.

    Raises
    ------
    UsageError
        The pattern is unknown, or its number is missing, superfluous, too small or even.

    Examples
    --------
    >>> parse_pattern("window:7")
    Pattern(kind='window', reach=7)
    """
    kind, sign, number = text.partition(":")
    if kind not in WITH_REACH:
        raise unknown("attention", kind, WITH_REACH)
    wants = WITH_REACH[kind]
    if bool(sign) != wants or (wants and not (number.isdigit() and int(number) > 0)):
        expected = f"{kind}:K with K of 1 or more, for example {kind}:7" if wants else kind
        raise UsageError(f"invalid attention {text!r}", got=text, expected=expected)
    if kind == "neighbourhood" and int(number) % 2 == 0:
        raise UsageError(
            "the neighbourhood size must be odd", got=text, expected="an odd number, for example neighbourhood:7"
        )
    return Pattern(kind, int(number) if wants else 0)


def window_starts(reach: int, length: int, shifted: bool) -> list[int]:
    """First positions of the windows along an axis; the first window is smaller where windows are shifted."""
    first = reach // 2 if shifted else 0
    return [0, *range(first, length, reach)] if first else list(range(0, length, reach))


def nearest_start(position: int, reach: int, length: int) -> int:
    """The first of the ``reach`` positions nearest to one, inside the axis."""
    return min(max(position - reach // 2, 0), max(0, length - reach))


def segments(kind: str, reach: int, length: int, *, shifted: bool = False, tile: int = TILE) -> list[Segment]:
    """Partition one axis: each position is a query of exactly one segment.

    Parameters
    ----------
    kind : {"window", "neighbourhood", "rest", "whole", "single"}
        rest: positions with the same remainder modulo ``reach``.
    reach, length : int
        Size of the pattern, and of the axis.
    shifted : bool
        Whether windows are shifted by half their size.
    tile : int
        Queries of one segment of a neighbourhood.
    """
    everything = list(range(length))
    if kind == "whole":
        return [(everything, everything)]
    if kind == "single":
        return [([i], [i]) for i in everything]
    if kind == "rest":
        return [(everything[r::reach], everything[r::reach]) for r in range(min(reach, length))]
    if kind == "window":
        starts = window_starts(reach, length, shifted)
        cuts = [everything[a:b] for a, b in zip(starts, [*starts[1:], length])]
        return [(cut, cut) for cut in cuts if cut]
    cuts_of_axis = []
    for start in range(0, length, tile):
        queries = everything[start : start + tile]
        last = nearest_start(queries[-1], reach, length) + reach
        cuts_of_axis.append((queries, everything[nearest_start(queries[0], reach, length) : last]))
    return cuts_of_axis


def parts(pattern: Pattern, grid: Sequence[int], layer: int) -> list[list[list[Segment]]]:
    """[part][axis][segment] of all patterns but ``full``; parts may have keys in common."""
    kind, reach = pattern.kind, pattern.reach
    if kind in ("window", "neighbourhood"):
        tile = VOLUME_TILE if len(grid) > 2 else TILE
        return [[segments(kind, reach, length, shifted=layer % 2 == 1, tile=tile) for length in grid]]
    if kind == "strided":
        return [[segments(cut, reach, length) for length in grid] for cut in ("window", "rest")]
    axes = range(len(grid))
    return [[segments("whole" if a == axis else "single", 0, grid[a]) for a in axes] for axis in axes]


def computed_pairs(pattern: Pattern, grid: Sequence[int], prefix: int, layer: int) -> int:
    """Number of products of a query with a key that one head computes, those of padding and masked keys included.

    Examples
    --------
    >>> computed_pairs(parse_pattern("full"), (4, 4), prefix=1, layer=0)
    289
    """
    tokens = prefix + math.prod(grid)
    if pattern.kind == "full":
        return tokens**2
    total = prefix * tokens
    for number, part in enumerate(parts(pattern, grid, layer)):
        tiles = math.prod(len(axis) for axis in part)
        queries = math.prod(max(len(q) for q, _ in axis) for axis in part)
        keys = math.prod(max(len(k) for _, k in axis) for axis in part)
        total += tiles * queries * (keys + (prefix if number == 0 else 0))
    return total
