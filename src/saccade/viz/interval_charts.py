"""Charts of a study: learning curves with interval bands over a log axis, curves over the angle, accuracy against cost.

Hand-written SVG like ``charts``. Every backbone has one style on the whole page: colour, dash and mark. The six
colours suit the common kinds of colour blindness, on light and dark pages (``--series-1`` ... in the page's style).
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from saccade.viz.charts import LETTER_PX, Frame, nice_ticks, short_number, svg_head, svg_rule, svg_text

STYLES = (
    ("var(--series-1,#24619e)", "", "circle"),
    ("var(--series-2,#b4541a)", "7 3", "square"),
    ("var(--series-3,#16181b)", "2 3", "up"),
    ("var(--series-4,#8147e6)", "10 3 2 3", "diamond"),
    ("var(--series-5,#0a7d60)", "4 2", "down"),
    ("var(--series-6,#7c2d52)", "12 4", "ring"),
)
MARKED = 10  # more points than this are a line without marks


@dataclass(frozen=True)
class IntervalCurve:
    """One line over x, optionally with the ends of its intervals; ``style`` is the index of the backbone."""

    name: str
    style: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def band_svg(
    curves: Sequence[IntervalCurve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (460, 300),
    log: bool = True,
    ticks: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    zero: bool = False,
    whiskers: bool = False,
    label_ends: bool = True,
) -> str:
    """Curves with bands between ``low`` and ``high`` as an ``<svg>`` element.

    Parameters
    ----------
    curves : sequence of IntervalCurve
        Points that are not finite are left out.
    title, x_label, y_label : str
        Texts of the chart.
    size : tuple of int
        (width, height) of the viewBox.
    log : bool
        Logarithmic x axis.
    ticks : sequence of float, optional
        Labelled x values; None labels the points of the curves.
    y_range : tuple of float, optional
        None fits the curves.
    zero : bool
        Draw a line at zero.
    whiskers : bool
        Draw intervals as lines side by side, where bands would cover each other.
    label_ends : bool
        Draw names at the ends of the lines; otherwise a key (``key_svg``) names them.
    """
    to_axis = _log10 if log else float
    curves = [drawable for curve in curves if (drawable := _finite(curve, to_axis)) is not None]
    summary = "; ".join(f"{c.name}: from {short_number(c.y[0])} to {short_number(c.y[-1])}" for c in curves)
    head = svg_head(title, y_label, size, summary or "no values")
    if not curves:
        return head + svg_text(size[0] / 2, size[1] / 2, "no values", "middle", muted=True) + "</svg>"
    ticks = sorted({x for c in curves for x in c.x}) if ticks is None else [to_axis(tick) for tick in ticks]
    names = min(24, max(len(c.name) for c in curves)) if label_ends else 0
    low, high = y_range or y_limits(curves, zero=zero)
    ends = (min([*ticks, *(c.x[0] for c in curves)]), max([*ticks, *(c.x[-1] for c in curves)]))
    side = 0.07 * (ends[1] - ends[0]) if whiskers else 0.0
    ends = (ends[0] - side, ends[1] + side)
    frame = Frame(
        _open(ends), (low, high), 40, 36, size[0] - (names * LETTER_PX + 26 if label_ends else 16), size[1] - 40
    )
    parts = [_axes(frame, ticks, lambda x: short_number(10**x if log else x), x_label)]
    if whiskers:
        curves = _side_by_side(frame, curves)
        parts += [_whiskers(frame, curve) for curve in curves]
    else:
        parts += [_band(frame, curve, 0.13 if len(curves) < 4 else 0.08) for curve in curves]
    if zero and low <= 0 <= high:
        parts.append(svg_rule(frame.left, frame.at_y(0), frame.right, frame.at_y(0), 0.6))
    parts += [_line(frame, curve) for curve in curves]
    return head + "".join(parts) + (_names(frame, curves, names) if label_ends else "") + "</svg>"


def y_limits(curves: Sequence[IntervalCurve], *, zero: bool = False) -> tuple[float, float]:
    """The range of all lines and bands of these curves, with a margin."""
    values = [v for c in curves for v in (*c.y, *c.low, *c.high) if math.isfinite(v)] + ([0.0] if zero else [])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.05 or 1.0
    return (low if low == 0 else low - room), high + room


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _open(ends: tuple[float, float]) -> tuple[float, float]:
    """A range that is not a point."""
    return ends if ends[1] > ends[0] else (ends[0] - 0.5, ends[1] + 0.5)


def _finite(curve: IntervalCurve, to_axis: Callable[[float], float]) -> IntervalCurve | None:
    """The points that can be drawn, in axis coordinates, sorted along x."""
    keep = [i for i, (x, y) in enumerate(zip(curve.x, curve.y)) if math.isfinite(to_axis(x)) and math.isfinite(y)]
    keep.sort(key=lambda i: curve.x[i])
    ends = [[values[i] for i in keep] if values else [] for values in (curve.low, curve.high)]
    xs, ys = [to_axis(curve.x[i]) for i in keep], [curve.y[i] for i in keep]
    return IntervalCurve(curve.name, curve.style, xs, ys, *ends) if keep else None


def _axes(frame: Frame, ticks: Sequence[float], write: Callable[[float], str], x_label: str) -> str:
    parts = []
    for value in nice_ticks(*frame.y, 5):
        y = frame.at_y(value)
        parts.append(svg_rule(frame.left, y, frame.right, y, 0.12))
        parts.append(svg_text(frame.left - 8, y + 4, short_number(value).replace("-", "−"), "end", muted=True))
    free = -math.inf
    for value in ticks:
        x, words = frame.at_x(value), write(value)
        if x - len(words) * LETTER_PX / 2 < free:
            continue
        free = x + len(words) * LETTER_PX / 2 + 6
        parts.append(svg_rule(x, frame.bottom, x, frame.bottom + 4, 0.4))
        parts.append(svg_text(x, frame.bottom + 18, words, "middle", muted=True))
    parts.append(svg_text((frame.left + frame.right) / 2, frame.bottom + 35, x_label, "middle", muted=True))
    return "".join(parts)


def _band(frame: Frame, curve: IntervalCurve, opacity: float) -> str:
    edges = list(zip(curve.x, curve.low, curve.high))
    edges = [(x, low, high) for x, low, high in edges if math.isfinite(low) and math.isfinite(high)]
    if not edges:
        return ""
    colour = STYLES[curve.style % len(STYLES)][0]
    if len(edges) == 1:  # a band has no width there
        return _whiskers(frame, curve)
    upper = [f"{frame.at_x(x):.1f} {frame.at_y(high):.1f}" for x, _, high in edges]
    lower = [f"{frame.at_x(x):.1f} {frame.at_y(low):.1f}" for x, low, _ in reversed(edges)]
    return f'<path d="M{"L".join(upper + lower)}Z" style="fill:{colour}" fill-opacity="{opacity}"/>'


def _whiskers(frame: Frame, curve: IntervalCurve) -> str:
    path = ""
    for x, low, high in zip(curve.x, curve.low, curve.high):
        if math.isfinite(low) and math.isfinite(high):
            path += f"M{frame.at_x(x):.1f} {frame.at_y(low):.1f}V{frame.at_y(high):.1f}"
    colour = STYLES[curve.style % len(STYLES)][0]
    return f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-opacity=".55" stroke-width="1.5"/>'


def _side_by_side(frame: Frame, curves: Sequence[IntervalCurve], step_px: float = 6) -> list[IntervalCurve]:
    """The curves shifted along x so that their whiskers do not overlap."""
    unit = step_px / (frame.at_x(1) - frame.at_x(0))
    middle = (len(curves) - 1) / 2
    return [replace(c, x=[x + (i - middle) * unit for x in c.x]) for i, c in enumerate(curves)]


def _line(frame: Frame, curve: IntervalCurve) -> str:
    colour, dash, mark = STYLES[curve.style % len(STYLES)]
    places = [(frame.at_x(x), frame.at_y(y)) for x, y in zip(curve.x, curve.y)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    marks = "".join(svg_mark(mark, x, y) for x, y in places) if len(places) <= MARKED else ""
    return (
        f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-width="1.75" stroke-linejoin="round"{dashes}/>'
        f'<g style="fill:{colour};stroke:{colour}">{marks}</g>'
    )


def svg_mark(kind: str, x: float, y: float, r: float = 3.2) -> str:
    """The mark of a style, so that lines differ in grey print."""
    if kind in ("circle", "ring"):
        fill = ' style="fill:var(--page,#fff)"' if kind == "ring" else ""
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"{fill}/>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "up": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "down": ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[kind]
    return '<path d="M' + "L".join(f"{x + a * r:.1f} {y + b * r:.1f}" for a, b in corners) + 'Z"/>'


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """Sorted positions moved as little as possible (least squares) so that neighbours keep ``gap``.

    Examples
    --------
    >>> apart([0, 1], 4)
    [-1.5, 2.5]
    """
    blocks: list[list[float]] = []  # total and count of places that stand shoulder to shoulder
    for i, value in enumerate(positions):
        blocks.append([value - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    spread = [total / count for total, count in blocks for _ in range(int(count))]
    return [position + i * gap for i, position in enumerate(spread)]


def _names(frame: Frame, curves: Sequence[IntervalCurve], most: int) -> str:
    """Names to the right of the chart, each connected to the end of its curve."""
    order = sorted(curves, key=lambda c: frame.at_y(c.y[-1]))
    heights = apart([frame.at_y(c.y[-1]) for c in order], 15)
    below = max(0.0, heights[-1] - frame.bottom)
    below = min(below, heights[0] - frame.top)  # the title must stay free
    parts = []
    for curve, height in zip(order, heights):
        colour = STYLES[curve.style % len(STYLES)][0]
        y, x, end = height - below, frame.right + 18, frame.at_x(curve.x[-1])
        leader = f"M{end + 5:.1f} {frame.at_y(curve.y[-1]):.1f}L{frame.right + 14:.1f} {y:.1f}"
        parts.append(f'<path d="{leader}" fill="none" style="stroke:{colour}" stroke-opacity=".55"/>')
        name = curve.name if len(curve.name) <= most else curve.name[: most - 1] + "…"
        words = f'x="{x:.1f}" y="{y + 4:.1f}" style="fill:{colour}" font-weight="600"'
        parts.append(f"<text {words}>{html.escape(name)}</text>")
    return "".join(parts)


def key_svg(style: int) -> str:
    """A sample of a line in its style, for a key."""
    colour, dash, mark = STYLES[style % len(STYLES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 12" aria-hidden="true">'
        f'<path d="M0 6H40" fill="none" style="stroke:{colour}" stroke-width="1.75"{dashes}/>'
        f'<g style="fill:{colour};stroke:{colour}">{svg_mark(mark, 20, 6)}</g></svg>'
    )


# --- accuracy against cost ------------------------------------------------------------------------


@dataclass(frozen=True)
class CostPoint:
    """One backbone: its cost (x), its score (y) and the interval of the score."""

    name: str
    style: int
    x: float
    y: float
    low: float
    high: float


def cost_svg(
    points: Sequence[CostPoint],
    *,
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (460, 300),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Marks with whiskers over a logarithmic cost axis, as an ``<svg>`` element. A key (``key_svg``) names them."""
    points = [s for s in points if s.x > 0 and math.isfinite(s.x) and math.isfinite(s.y)]
    summary = "; ".join(f"{s.name}: {short_number(s.y)} at {short_number(s.x)}" for s in points)
    head = svg_head(title, y_label, size, summary or "no values")
    if not points:
        return head + svg_text(size[0] / 2, size[1] / 2, "no values", "middle", muted=True) + "</svg>"
    logs = [math.log10(s.x) for s in points]
    curves = [IntervalCurve(s.name, s.style, [s.x], [s.y], [s.low], [s.high]) for s in points]
    room = 0.06 * (max(logs) - min(logs)) or 0.5
    frame = Frame((min(logs) - room, max(logs) + room), y_range or y_limits(curves), 40, 36, size[0] - 12, size[1] - 40)
    parts = [_axes(frame, _decades(*frame.x), lambda x: short_number(10**x), x_label)]
    for curve, at in zip(curves, logs):
        moved = replace(curve, x=[at])
        parts += [_whiskers(frame, moved), _line(frame, moved)]
    return head + "".join(parts) + "</svg>"


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten inside a range of logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [x for p in powers for m in (1, 2, 5) if low <= (x := p + math.log10(m)) <= high]
