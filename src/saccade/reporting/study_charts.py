"""The charts of a study's page: learning curves, effects, curves over the angle, price against worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.evaluation.findings import series_words
from saccade.reporting.html import Html, count, h, missing, number, sequence
from saccade.reporting.run_files import mapping
from saccade.reporting.study_tables import metric_name, ordered
from saccade.viz.interval_charts import Curve, Spot, band_svg, key_svg, spots_svg, y_limits

IMAGES = "labelled images"
WAYS = {
    "random": "Random weights",
    "supervised": "Labels only, no augmentation",
    "augmented": "Labels only, with augmentation",
    "dino": "DINO",
}
LARGE = (940, 420)
Found = Mapping[str, Any]


def _styles(names: Sequence[Any]) -> dict[str, int]:
    """One style a backbone, the same in every chart."""
    return {str(name): i for i, name in enumerate(names)}


def _curve(name: str, style: int, rows: Sequence[Mapping[str, Any]], value: str) -> Curve:
    columns = [[100 * number(row.get(key)) for row in rows] for key in (value, "low", "high")]
    return Curve(name, style, [number(row["size"]) for row in rows], *columns)


def main_series(found: Found) -> str:
    """The series that is shown large."""
    series = ordered(sequence(found.get("series")))
    return "augmented" if "augmented" in series else next(iter(series), "")


def curve_svgs(found: Found) -> dict[str, str]:
    """Learning curves, one panel a series, all on one scale."""
    styles = _styles(sequence(found.get("backbones")))
    panels = {}
    for series in ordered(sequence(found.get("series"))):
        own = [row for row in sequence(found.get("points")) if row["series"] == series]
        by_name = {name: [row for row in own if row["backbone"] == name] for name in styles}
        panels[series] = [_curve(name, styles[name], rows, "mean") for name, rows in by_name.items() if rows]
    limits = y_limits([curve for curves in panels.values() for curve in curves])
    limits = max(0.0, limits[0]), min(100.0, limits[1])
    return {
        series: band_svg(
            curves,
            title=series_words(series)[:1].upper() + series_words(series)[1:],
            x_label=IMAGES,
            y_label=f"{metric_name(found)} in %",
            y_range=limits,
            size=LARGE if series == main_series(found) else (460, 320),
        )
        for series, curves in panels.items()
    }


def curve_charts(found: Found) -> Html:
    """The learning curves of every series; the first is large."""
    made = {series: Html(svg) for series, svg in curve_svgs(found).items()}
    if not made:
        return missing("It is not known which series there are.")
    first = made.pop(main_series(found))
    return h("div", None, h("div", {"class": "large"}, first), h("div", {"class": "charts wide"}, list(made.values())))


def effect_chart(found: Found, block: Found, title: str) -> Html:
    """A treatment's effect over the training size, with the line of zero."""
    curves = []
    for name, style in _styles(sequence(found.get("backbones"))).items():
        rows = [row for row in sequence(block.get("rows")) if row["backbone"] == name]
        if rows:
            curves.append(_curve(name, style, rows, "difference"))
    many = len(curves) > 3
    drawn = band_svg(curves, title=title, x_label=IMAGES, y_label="points", zero=True, whiskers=many, named=False)
    return Html(drawn)


def drift_svgs(study: Found, *, named: bool) -> dict[str, str]:
    """How far the vector moves, over the angle: one panel a way of training, all on one scale."""
    drift = mapping(study.get("drift"))
    panels: dict[str, list[Curve]] = {}
    for name, style in _styles(sequence(study.get("backbones"))).items():
        own = mapping(drift.get(name))
        for way, values in mapping(own.get("error")).items():
            # A whole turn is no turn: the curve closes.
            angles = [number(angle) for angle in sequence(own.get("angles"))] + [360.0]
            errors = [number(value) for value in sequence(values)]
            panels.setdefault(str(way), []).append(Curve(name, style, angles, errors + errors[:1]))
    limits = (0.0, y_limits([curve for curves in panels.values() for curve in curves])[1])
    order = [way for way in WAYS if way in panels] + [way for way in panels if way not in WAYS]
    return {
        way: band_svg(
            panels[way],
            title=WAYS.get(way, way),
            x_label="angle in degrees",
            y_label="distance moved",
            log=False,
            ticks=(0, 90, 180, 270, 360),
            y_range=limits,
            size=LARGE if named else (460, 300),
            named=named,
        )
        for way in order
    }


def drift_charts(study: Found) -> Html | None:
    charts = [Html(svg) for svg in drift_svgs(study, named=False).values()]
    return h("div", None, key(study), h("div", {"class": "charts wide"}, charts)) if charts else None


def key(study: Found) -> Html:
    """Which line is which backbone, where names at the ends of lines would cover each other."""
    styles = _styles(sequence(study.get("backbones")))
    return h("div", {"class": "key"}, [h("span", None, Html(key_svg(i)), name) for name, i in styles.items()])


def cost_charts(study: Found) -> Html | None:
    """What is reached over operations, with fewest and with most images."""
    found = mapping(study.get("summary"))
    costs, sizes = mapping(study.get("costs")), sequence(found.get("sizes"))
    styles = _styles(sequence(study.get("backbones")))
    series = next(
        (s for s in ("augmented", *ordered(sequence(found.get("series")))) if s in found.get("series", [])), ""
    )
    panels = {}
    for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
        rows = [r for r in sequence(found.get("points")) if (r["series"], r["size"]) == (series, size)]
        panels[size] = [
            Spot(
                r["backbone"],
                styles.get(r["backbone"], 0),
                number(mapping(costs.get(r["backbone"])).get("flops")) / 1e9,
                *(100 * number(r.get(key)) for key in ("mean", "low", "high")),
            )
            for r in rows
        ]
    if not any(math.isfinite(spot.x) for spots in panels.values() for spot in spots):
        return None
    unit = f"{metric_name(found)} in %, {series_words(series)}"
    charts = [
        Html(spots_svg(spots, title=f"{count(size)} images", x_label="10⁹ operations an image, forward", y_label=unit))
        for size, spots in panels.items()
    ]
    return h("div", None, key(study), h("div", {"class": "charts wide"}, charts))
