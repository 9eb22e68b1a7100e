"""Line charts and interval charts as hand-written SVG: no library, no script, sharp on paper.

Colours come from the page through ``currentColor`` and CSS variables (``--line-1`` ...), with fallbacks, so
one drawing serves a light page, a dark page and a printer. Series differ by dash as well as by colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

LINES = (
    ("var(--line-1,#24619e)", ""),
    ("var(--line-2,#b4541a)", "7 4"),
    ("var(--line-3,#1d7a68)", "2 4"),
    ("var(--line-4,#7a4fa3)", "10 3 2 3"),
)
LETTER_PX = 6.9
"""Mean width of a letter at 12 px in Arial; text is laid out without measuring it."""

Points = tuple[Sequence[float], Sequence[float]]


# --- scales --------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> nice_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short_number(value: float, digits: int = 4) -> str:
    """A number for a tick or a label.

    Examples
    --------
    >>> short_number(1200), short_number(12_000), short_number(5e-5)
    ('1,200', '12k', '5e-5')
    """
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.{digits}g}"


@dataclass(frozen=True)
class Frame:
    """Data ranges, and the rectangle of the drawing that shows them."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    def at_x(self, value: float) -> float:
        return self.left + (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        return self.bottom - (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1) * (self.bottom - self.top)


# --- curves --------------------------------------------------------------------------------------


def curve_svg(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    reference: Mapping[str, float] | None = None,
    size: tuple[int, int] = (400, 235),
    from_zero: bool = False,
) -> str:
    """A line chart as an ``<svg>`` element.

    Parameters
    ----------
    series : mapping
        Name to (x values, y values); values that are not finite leave a gap. Names are drawn at the ends of the lines.
    title, x_label, y_label : str
        Texts of the chart.
    reference : mapping, optional
        Name to value of labelled horizontal lines.
    size : tuple of int
        (width, height) of the viewBox.
    from_zero : bool
        Start the vertical axis at zero.
    """
    reference = {k: v for k, v in (reference or {}).items() if math.isfinite(v)}
    drawn = {name: _finite_runs(*points) for name, points in series.items()}
    drawn = {name: runs for name, runs in drawn.items() if runs}
    head = svg_head(title, y_label, size, _summary(drawn, reference))
    if not drawn:
        return head + svg_text(size[0] / 2, size[1] / 2, "no values", "middle", muted=True) + "</svg>"
    # A single line is named by the title; its end shows the last value.
    alone = len(drawn) == 1
    ends = {name: short_number(runs[-1][-1][1], digits=3) if alone else name for name, runs in drawn.items()}
    margin = 12 + LETTER_PX * max(len(text) for text in ends.values())
    frame = _frame(drawn, reference, size, margin)
    if from_zero or 0 <= frame.y[0] < 0.35 * frame.y[1]:
        frame = replace(frame, y=(min(0.0, frame.y[0]), frame.y[1]))
    parts = [_grid(frame, x_label), *(_reference(frame, k, v) for k, v in reference.items())]
    labels: list[tuple[float, float, str, str]] = []
    for i, (name, runs) in enumerate(drawn.items()):
        colour, dash = LINES[i % len(LINES)]
        parts.append(_line(frame, runs, colour, dash))
        x, y = runs[-1][-1]
        labels.append((frame.at_y(y), frame.at_x(x), ends[name], colour))
    return head + "".join(parts) + _end_labels(labels) + "</svg>"


def _finite_runs(x: Sequence[float], y: Sequence[float], most: int = 400) -> list[list[tuple[float, float]]]:
    """Runs of consecutive finite points; thinned to about ``most`` points, the last one always kept."""
    step = max(1, -(-len(x) // most))
    keep = set(range(0, len(x), step)) | {len(x) - 1}
    runs: list[list[tuple[float, float]]] = []
    broken = True
    for i, (a, b) in enumerate(zip(x, y)):
        if not (math.isfinite(a) and math.isfinite(b)):
            broken = True
        elif broken:
            runs.append([(a, b)])
            broken = False
        elif i in keep:
            runs[-1].append((a, b))
    return runs


def _frame(
    drawn: Mapping[str, list[list[tuple[float, float]]]],
    reference: Mapping[str, float],
    size: tuple[int, int],
    margin: float,
) -> Frame:
    points = [p for runs in drawn.values() for run in runs for p in run]
    xs = [p[0] for p in points]
    ys = [p[1] for p in points] + list(reference.values())
    low, high = min(ys), max(ys)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Quantities that cannot be negative start at zero, not slightly below.
    foot = low - room if low < 0 or low - room > 0 else 0.0
    last = max(xs) if max(xs) > min(xs) else min(xs) + 1
    return Frame((min(xs), last), (foot, high + room), 46, 40, size[0] - margin, size[1] - 34)


def svg_head(title: str, y_label: str, size: tuple[int, int], summary: str) -> str:
    faint = 'fill-opacity=".62" font-weight="400" dx="6"'
    unit = f"<tspan {faint}>{html.escape(y_label)}</tspan>" if y_label else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'font-family="Arial,Helvetica,sans-serif" font-size="12" fill="currentColor">'
        f"<title>{html.escape(f'{title}. {summary}')}</title>"
        f'<text x="0" y="16" font-size="14" font-weight="600">{html.escape(title)}{unit}</text>'
    )


def _summary(drawn: Mapping[str, list[list[tuple[float, float]]]], reference: Mapping[str, float]) -> str:
    """The chart in words, for screen readers."""
    parts = [
        f"{name}: from {short_number(runs[0][0][1])} to {short_number(runs[-1][-1][1])}" for name, runs in drawn.items()
    ]
    parts += [f"reference {k}: {short_number(v)}" for k, v in reference.items()]
    return "; ".join(parts) or "no values"


def svg_text(x: float, y: float, text: str, anchor: str = "start", *, muted: bool = False) -> str:
    faint = ' fill-opacity=".62"' if muted else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{faint}>{html.escape(text)}</text>'


def svg_rule(x1: float, y1: float, x2: float, y2: float, opacity: float, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="{opacity}"{dashes}/>'
    )


def _grid(frame: Frame, x_label: str) -> str:
    parts = []
    for value in nice_ticks(*frame.y, 4 if frame.bottom - frame.top > 120 else 2):
        y = frame.at_y(value)
        parts.append(svg_rule(frame.left, y, frame.right, y, 0.12))
        parts.append(svg_text(frame.left - 8, y + 4, short_number(value), "end", muted=True))
    ticks = nice_ticks(*frame.x, 4 if frame.right - frame.left > 200 else 2)
    for value in ticks:
        parts.append(svg_text(frame.at_x(value), frame.bottom + 20, short_number(value), "middle", muted=True))
    parts.append(svg_text(frame.left - 14, frame.bottom + 20, x_label, "end", muted=True))
    return "".join(parts)


def _reference(frame: Frame, label: str, value: float) -> str:
    """A dashed line with its name above it, or below where there is no room above."""
    y = frame.at_y(value)
    above = y - 6 if y - 18 > frame.top - 6 else y + 15
    text = svg_text(frame.right, above, f"{label} = {short_number(value)}", "end", muted=True)
    return svg_rule(frame.left, y, frame.right, y, 0.55, "3 4") + text


def _line(frame: Frame, runs: list[list[tuple[float, float]]], colour: str, dash: str) -> str:
    steps, dots = [], []
    for run in runs:
        if len(run) == 1:
            x, y = run[0]
            dots.append(f'<circle cx="{frame.at_x(x):.1f}" cy="{frame.at_y(y):.1f}" r="2.5"/>')
        steps.append("M" + "L".join(f"{frame.at_x(x):.1f} {frame.at_y(y):.1f}" for x, y in run))
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="{"".join(steps)}" fill="none" style="stroke:{colour}" stroke-width="1.75" '
        f'stroke-linejoin="round"{dashes}/><g style="fill:{colour}">{"".join(dots)}</g>'
    )


def _end_labels(labels: list[tuple[float, float, str, str]]) -> str:
    """Names at the ends of the lines, moved apart where they would touch."""
    labels = sorted(labels)
    heights = [y for y, *_ in labels]
    for i, (above, _) in enumerate(pairwise(heights)):
        heights[i + 1] = max(heights[i + 1], above + 15, heights[i] + 15)
    return "".join(
        f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" style="fill:{colour}" font-weight="600">{html.escape(name)}</text>'
        for y, (_, x, name, colour) in zip(heights, labels)
    )


# --- intervals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a mean with its 95 % interval.

    Parameters
    ----------
    group, label : str
        Heading and name of the row.
    mean, low, high : float
        In the unit shown.
    strong : bool
        Draw a filled dot (the evaluated model); baselines have a hollow one.
    """

    group: str
    label: str
    mean: float
    low: float
    high: float
    strong: bool = False


def interval_svg(
    rows: Sequence[Interval], *, title: str, x_label: str, width: int = 400, digits: int = 1, most_letters: int = 22
) -> str:
    """Means with their intervals, grouped by ``group`` in the given order, as an ``<svg>`` element.

    Parameters
    ----------
    rows : sequence of Interval
        Rows whose mean is not finite are left out.
    width : int
        Of the viewBox.
    digits : int
        Decimals of the printed means.
    most_letters : int
        Longer names are shortened.
    """
    rows = [row for row in rows if math.isfinite(row.mean)]
    groups = list(dict.fromkeys(row.group for row in rows))
    height = 36 + 38 * len(groups) + 23 * len(rows) + 30
    summary = "; ".join(f"{row.group}, {row.label}: {row.mean:.{digits}f}" for row in rows)
    head = svg_head(title, x_label, (width, height), summary or "no values")
    if not rows:
        return head + svg_text(width / 2, 50, "no values", "middle", muted=True) + "</svg>"
    ends = [v for row in rows for v in (row.low, row.mean, row.high) if math.isfinite(v)]
    room = (max(ends) - min(ends)) * 0.05 or 1.0
    letters = min(most_letters, max(len(row.label) for row in rows))
    left = letters * LETTER_PX + 14
    frame = Frame((min(ends) - room, max(ends) + room), (0, 1), left, 34, width - 42, height - 26)
    parts = []
    for tick in nice_ticks(*frame.x, 4):
        x = frame.at_x(tick)
        parts.append(svg_rule(x, frame.top, x, frame.bottom, 0.12))
        parts.append(svg_text(x, frame.bottom + 18, short_number(tick), "middle", muted=True))
    y = frame.top
    for group in groups:
        y += 26
        parts.append(f'<text x="0" y="{y:.1f}" font-weight="600">{html.escape(group)}</text>')
        for row in (row for row in rows if row.group == group):
            y += 23
            parts.append(_whisker(frame, row, y, letters, f"{row.mean:.{digits}f}"))
        y += 12
    return head + "".join(parts) + "</svg>"


def _whisker(frame: Frame, row: Interval, y: float, letters: int, value: str) -> str:
    colour = LINES[0][0] if row.strong else "currentColor"
    low = row.low if math.isfinite(row.low) else row.mean
    high = row.high if math.isfinite(row.high) else row.mean
    weight = ' font-weight="600"' if row.strong else ' fill-opacity=".8"'
    fill = colour if row.strong else "var(--page,#fff)"
    name = row.label if len(row.label) <= letters else row.label[: letters - 1].rstrip() + "…"
    return (
        f'<text x="0" y="{y:.1f}"{weight}>{html.escape(name)}</text>'
        f'<g style="stroke:{colour}" stroke-width="1.5"><line x1="{frame.at_x(low):.1f}" y1="{y - 4:.1f}" '
        f'x2="{frame.at_x(high):.1f}" y2="{y - 4:.1f}"/>'
        f'<circle cx="{frame.at_x(row.mean):.1f}" cy="{y - 4:.1f}" r="4" style="fill:{fill}"/></g>'
        f'<text x="{frame.right + 42:.1f}" y="{y:.1f}" text-anchor="end"{weight}>{value}</text>'
    )
