"""The charts of a study: learning curves, effects, curves over the angle, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.evaluation.findings import series_words
from saccade.reporting.html import Html, count, h, missing, number, sequence
from saccade.reporting.run_files import mapping
from saccade.reporting.study_tables import metric_name, ordered
from saccade.viz.interval_charts import CostPoint, IntervalCurve, band_svg, cost_svg, key_svg, y_limits

IMAGES = "labelled images"
REGIMES = {
    "random": "Random weights",
    "supervised": "Labels only, no augmentation",
    "augmented": "Labels only, with augmentation",
    "dino": "DINO",
}
LARGE = (940, 420)
Found = Mapping[str, Any]


def _styles(names: Sequence[Any]) -> dict[str, int]:
    """One style per backbone, the same in every chart."""
    return {str(name): i for i, name in enumerate(names)}


def _curve(name: str, style: int, rows: Sequence[Mapping[str, Any]], value: str) -> IntervalCurve:
    columns = [[100 * number(row.get(key)) for row in rows] for key in (value, "low", "high")]
    return IntervalCurve(name, style, [number(row["size"]) for row in rows], *columns)


def main_series(summary: Found) -> str:
    """The series that is drawn large."""
    series = ordered(sequence(summary.get("series")))
    return "augmented" if "augmented" in series else next(iter(series), "")


def curve_svgs(summary: Found) -> dict[str, str]:
    """Learning curves, one panel per series, all on one scale."""
    styles = _styles(sequence(summary.get("backbones")))
    panels = {}
    for series in ordered(sequence(summary.get("series"))):
        points = [row for row in sequence(summary.get("points")) if row["series"] == series]
        by_name = {name: [row for row in points if row["backbone"] == name] for name in styles}
        panels[series] = [_curve(name, styles[name], rows, "mean") for name, rows in by_name.items() if rows]
    limits = y_limits([curve for curves in panels.values() for curve in curves])
    limits = max(0.0, limits[0]), min(100.0, limits[1])
    return {
        series: band_svg(
            curves,
            title=series_words(series)[:1].upper() + series_words(series)[1:],
            x_label=IMAGES,
            y_label=f"{metric_name(summary)} in %",
            y_range=limits,
            size=LARGE if series == main_series(summary) else (460, 320),
        )
        for series, curves in panels.items()
    }


def curve_charts(summary: Found) -> Html:
    """The learning curves of every series; the main one is large."""
    made = {series: Html(svg) for series, svg in curve_svgs(summary).items()}
    if not made:
        return missing("No series are recorded.")
    first = made.pop(main_series(summary))
    return h("div", None, h("div", {"class": "large"}, first), h("div", {"class": "charts wide"}, list(made.values())))


def effect_chart(summary: Found, block: Found, title: str) -> Html:
    """The effect of a treatment over the training size, with a line at zero."""
    curves = []
    for name, style in _styles(sequence(summary.get("backbones"))).items():
        rows = [row for row in sequence(block.get("rows")) if row["backbone"] == name]
        if rows:
            curves.append(_curve(name, style, rows, "difference"))
    many = len(curves) > 3
    drawn = band_svg(
        curves, title=title, x_label=IMAGES, y_label="percentage points", zero=True, whiskers=many, label_ends=False
    )
    return Html(drawn)


def drift_svgs(study: Found, *, label_ends: bool) -> dict[str, str]:
    """Distance of the image vector from the unrotated image's, over the angle: one panel per regime, on one scale."""
    drift = mapping(study.get("drift"))
    panels: dict[str, list[IntervalCurve]] = {}
    for name, style in _styles(sequence(study.get("backbones"))).items():
        drift_of_backbone = mapping(drift.get(name))
        for regime, values in mapping(drift_of_backbone.get("error")).items():
            # 360 degrees is 0 degrees: the curve closes.
            angles = [number(angle) for angle in sequence(drift_of_backbone.get("angles"))] + [360.0]
            errors = [number(value) for value in sequence(values)]
            panels.setdefault(str(regime), []).append(IntervalCurve(name, style, angles, errors + errors[:1]))
    limits = (0.0, y_limits([curve for curves in panels.values() for curve in curves])[1])
    order = [regime for regime in REGIMES if regime in panels] + [regime for regime in panels if regime not in REGIMES]
    return {
        regime: band_svg(
            panels[regime],
            title=REGIMES.get(regime, regime),
            x_label="angle in degrees",
            y_label="distance moved",
            log=False,
            ticks=(0, 90, 180, 270, 360),
            y_range=limits,
            size=LARGE if label_ends else (460, 300),
            label_ends=label_ends,
        )
        for regime in order
    }


def drift_charts(study: Found) -> Html | None:
    charts = [Html(svg) for svg in drift_svgs(study, label_ends=False).values()]
    return h("div", None, key(study), h("div", {"class": "charts wide"}, charts)) if charts else None


def key(study: Found) -> Html:
    """Which line is which backbone, where names at the ends of lines would overlap."""
    styles = _styles(sequence(study.get("backbones")))
    return h("div", {"class": "key"}, [h("span", None, Html(key_svg(i)), name) for name, i in styles.items()])


def cost_charts(study: Found) -> Html | None:
    """Accuracy over operations, with the fewest and with the most images."""
    summary = mapping(study.get("summary"))
    costs, sizes = mapping(study.get("costs")), sequence(summary.get("sizes"))
    styles = _styles(sequence(study.get("backbones")))
    series = next(
        (s for s in ("augmented", *ordered(sequence(summary.get("series")))) if s in summary.get("series", [])), ""
    )
    panels = {}
    for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
        rows = [r for r in sequence(summary.get("points")) if (r["series"], r["size"]) == (series, size)]
        panels[size] = [
            CostPoint(
                r["backbone"],
                styles.get(r["backbone"], 0),
                number(mapping(costs.get(r["backbone"])).get("flops")) / 1e9,
                *(100 * number(r.get(key)) for key in ("mean", "low", "high")),
            )
            for r in rows
        ]
    if not any(math.isfinite(spot.x) for spots in panels.values() for spot in spots):
        return None
    unit = f"{metric_name(summary)} in %, {series_words(series)}"
    charts = [
        Html(cost_svg(spots, title=f"{count(size)} images", x_label="10⁹ operations per image, forward", y_label=unit))
        for size, spots in panels.items()
    ]
    return h("div", None, key(study), h("div", {"class": "charts wide"}, charts))
