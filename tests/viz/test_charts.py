"""SVG charts: well-formed, told in words, honest about gaps, labels apart."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.viz.charts import Interval, curve_svg, interval_svg, nice_ticks, short_number

NS = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{NS}text")]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_few(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (abs(low) + span)
    assert len(ticks) <= 8
    assert all(low - slack <= t <= high + slack for t in ticks)


def test_ticks_are_round():
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(0.037, 0.41) == [0.1, 0.2, 0.3, 0.4]
    assert nice_ticks(3, 3) == [3]
    assert nice_ticks(math.nan, 1) != []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1200, "1,200"), (12000, "12k"), (0.04, "0.04"), (5e-5, "5e-5"), (2.5e6, "2.5M"), (-3, "-3")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_lines_are_named_at_their_ends_and_apart():
    svg = curve_svg(
        {"one <a>": ([0, 1, 2], [1, 2, 3]), "two": ([0, 1, 2], [1, 2, 3.001])}, title="T & U", x_label="step"
    )
    assert {"one <a>", "two", "T & U", "step"} <= set(texts(svg))
    places = {"".join(t.itertext()): float(t.get("y")) for t in ET.fromstring(svg).iter(f"{NS}text") if t.get("style")}
    assert abs(places["one <a>"] - places["two"]) >= 14.9
    assert "one &lt;a&gt;: from 1 to 3" in svg


def test_gaps_stay_gaps():
    svg = curve_svg({"a": ([0, 1, 2, 3, 4], [1, 2, math.nan, 3, math.inf])}, title="t", x_label="x")
    path = re.search(r'<path d="([^"]+)"', svg).group(1)
    assert path.count("M") == 2
    assert svg.count("<circle") == 1  # the lonely point after the gap


def test_long_series_are_thinned_but_end_where_they_end():
    n = 10_001
    svg = curve_svg({"a": (range(n), [float(i) for i in range(n)])}, title="t", x_label="x", reference={"r": 20000.0})
    path = re.search(r'<path d="([^"]+)"', svg).group(1)
    assert 300 < path.count("L") < 450
    assert "from 0 to 10k" in svg and "r = 20k" in texts(svg)


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([1, 2], [math.nan, math.nan])}])
def test_empty_charts_say_so(series):
    assert "no values" in texts(curve_svg(series, title="t", x_label="x"))


def test_from_zero_shows_zero():
    series = {"a": ([0, 1], [150.0, 152.0])}
    assert "0" not in texts(curve_svg(series, title="t", x_label=""))[1:3]
    assert "0" in texts(curve_svg(series, title="t", x_label="", from_zero=True))[1]


def test_one_point_is_drawn():
    assert "<circle" in curve_svg({"a": ([5], [7.0])}, title="t", x_label="x")


def test_intervals_are_drawn_at_their_values():
    rows = [
        Interval("100 %", "model <x>", 90.0, 85.0, 95.0, strong=True),
        Interval("100 %", "pixels", 60.0, math.nan, math.nan),
        Interval("1 %", "lost", math.nan, 1, 2),
    ]
    svg = interval_svg(rows, title="t", x_label="accuracy in %")
    root = ET.fromstring(svg)
    assert {"model <x>", "pixels", "90.0", "60.0", "100 %"} <= set(texts(svg))
    assert "lost" not in texts(svg)
    circles = [float(c.get("cx")) for c in root.iter(f"{NS}circle")]
    whisker = next(g.find(f"{NS}line") for g in root.iter(f"{NS}g"))
    assert circles[0] > circles[1]
    middle = (float(whisker.get("x1")) + float(whisker.get("x2"))) / 2
    assert middle == pytest.approx(circles[0], abs=0.2)
    assert "no values" in texts(interval_svg([], title="t", x_label="x"))
