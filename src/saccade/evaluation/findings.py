"""Conclusions of a study, as sentences that follow from its numbers by stated rules.

Every sentence has its rule and its evidence. It claims a difference only where one is "clear" (see learning_curves),
with 95 % intervals, and states otherwise that none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Sentence = dict[str, Any]

SERIES = {
    "supervised": "labels only, no augmentation",
    "augmented": "labels only, with augmentation",
    "dino-finetuned": "DINO, then fine-tuned",
    "dino-logistic": "DINO features, logistic regression",
    "dino-knn": "DINO features, k-NN",
}
"""Display names of the series, in the order of the report."""
TURNS = ("turned", "turn 45", "turn 90")


def series_words(name: str) -> str:
    return SERIES.get(name, name)


def conclude(summary: Mapping[str, Any]) -> list[Sentence]:
    """Sentences for a summary of ``learning_curves.summarise``, the most general first."""
    sizes = list(dict.fromkeys((summary["sizes"][0], summary["sizes"][-1])))
    main = next((name for name in ("augmented", *SERIES) if name in summary["series"]), summary["series"][0])
    series_shown = [main] + [name for name in ("dino-logistic",) if name in summary["series"] and name != main]
    sentences: list[Sentence | None] = [_lead(summary, main, size) for size in sizes]
    sentences += [_crossing(summary, series) for series in series_shown]
    sentences += [_effect(summary["augmentation"]["rows"], AUGMENTATION, size) for size in sizes]
    sentences += [_change(summary["augmentation"])]
    sentences += [sentence for size in sizes[:1] for sentence in _built_in(summary, size)]
    if "dino-finetuned" in summary["pretraining"]:
        sentences += [_effect(summary["pretraining"]["dino-finetuned"]["rows"], PRETRAINING, size) for size in sizes]
    sentences += [_lead(summary, series, size) for series in series_shown[1:] for size in sizes]
    sentences += [_turned(summary)]
    return [sentence for sentence in sentences if sentence is not None]


# --- words --------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(value: float, *, sign: bool = False) -> str:
    """8.9, or +8.9: percentage points, with a typographic minus."""
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def limits(row: Row) -> str:
    """95 % interval 3.1 to 14.4"""
    return f"95 % interval {points(row['low'])} to {points(row['high'])}"


def doubt(row: Row) -> str:
    """Why a difference is not clear although its 95 % interval excludes zero; empty where it includes zero."""
    if row["clear"] or row["low"] <= 0 <= row["high"]:
        return ""
    if row["strict_low"] <= 0 <= row["strict_high"]:
        return f", which may be chance among {row['comparisons']} comparisons"
    return ", from too few seeds or test groups to be sure"


def named(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _with(size: int) -> str:
    return f"With {size:,} labelled images"


def _evidence(what: str, row: Row) -> dict[str, Any]:
    keys = ("difference", "low", "high", "strict_low", "strict_high", "comparisons", "clear", "seeds")
    return {"what": what} | {key: row[key] for key in keys}


def _sentence(about: str, text: str, rule: str, evidence: list[dict[str, Any]]) -> Sentence:
    return {"about": about, "text": text, "rule": rule, "evidence": evidence}


# --- ranking -------------------------------------------------------------------------------


def between(summary: Mapping[str, Any], a: str, b: str, series: str, size: int) -> Row | None:
    """a minus b."""
    rows: Sequence[Row] = summary.get("differences", ())
    for row in rows:
        if (row["series"], row["size"]) == (series, size) and {row["first"], row["second"]} == {a, b}:
            if row["first"] == a:
                return row
            new = {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
            return dict(row) | new | {"strict_low": -row["strict_high"], "strict_high": -row["strict_low"]}
    return None


def _lead(summary: Mapping[str, Any], series: str, size: int) -> Sentence | None:
    here = [row for row in summary["points"] if (row["series"], row["size"]) == (series, size)]
    here.sort(key=lambda row: -row["mean"])
    mean = {row["backbone"]: row["mean"] for row in here}
    best = next(iter(mean), "")
    against = {name: row for name in mean if (row := between(summary, best, name, series, size)) is not None}
    if not against:
        return None
    ahead = [name for name, row in against.items() if row["clear"] and row["difference"] > 0]
    equal = [name for name in against if name not in ahead]
    start = f"{_with(size)} ({series_words(series)})"
    evidence = [_evidence(f"{best} − {name}", row) for name, row in against.items()]
    rule = (
        "A backbone leads when it is clearly ahead of every other one; where it is not, it is compared with the "
        "nearest of those it is not clearly ahead of."
    )
    if not equal:
        second = next(iter(against))
        row = against[second]
        words = f"{best} leads: {percent(mean[best])} against {percent(mean[second])}"
        words += f" for the next ({second})" if len(against) > 1 else f" for {second}"
        text = f"{start} {words}, difference {points(row['difference'])} points ({limits(row)})."
        return _sentence("lead", text, rule, evidence)
    rival = equal[0]
    row = against[rival]
    who = "the best two, " if rival == next(iter(against)) and len(against) > 1 else ""
    two = f"{best} ({percent(mean[best])}) and {rival} ({percent(mean[rival])})"
    text = f"{start} no backbone is clearly ahead: {who}{two}, differ by {points(row['difference'])} points"
    text = text.replace("), differ", "), differ" if who else ") differ") + f" ({limits(row)}){doubt(row)}."
    if ahead:
        text += f" Clearly behind {best}: {named(ahead)}."
    return _sentence("lead", text, rule, evidence)


def _crossing(summary: Mapping[str, Any], series: str) -> Sentence | None:
    """The CNN and the ViT of the table."""
    names = {summary["table"]["left"], summary["table"]["right"]} if summary["table"] else set()
    matching = (
        row for row in summary["crossings"] if row["series"] == series and {row["first"], row["second"]} == names
    )
    row = next(matching, None)
    if row is None:
        return None
    a, b, low, high = row["first"], row["second"], row["start"], row["end"]
    ends = [(low, row["from"]), (high, row["to"])]
    evidence = [_evidence(f"{a} − {b}, {size:,} images", r) for r, size in ends]
    at_start = f"{points(low['difference'])} points ({limits(low)})"
    words = series_words(series)
    if row["verdict"] == "passes":
        text = (
            f"{b} passes {a} at about {rounded(row['n'])} labelled images (95 % interval {rounded(row['low'])} to "
            f"{rounded(row['high'])}; {words}): it is {at_start} behind with {row['from']:,} images and "
            f"{points(-high['difference'])} points ({limits(_minus(high))}) ahead with {row['to']:,}."
        )
    elif row["verdict"] == "stays ahead":
        text = (
            f"{a} is ahead of {b} from {row['from']:,} labelled images ({words}), by {at_start}, to {row['to']:,}, by "
            f"{points(high['difference'])} points ({limits(high)}): no crossing."
        )
    else:
        text = (
            f"No crossing of {a} and {b} is shown between {row['from']:,} and {row['to']:,} labelled images ({words}): "
            f"{a} minus {b} is {at_start} with {row['from']:,} and {points(high['difference'])} points "
            f"({limits(high)}) with {row['to']:,}{doubt(high)}."
        )
    rule = (
        "One backbone passes another when the second is clearly ahead at the smallest size and the first at the "
        "largest. The place is where the mean curves meet, straight in log n; its interval is that of the same place "
        "in the resamples."
    )
    return _sentence("crossing", text, rule, evidence)


def _minus(row: Row) -> Row:
    return dict(row) | {"low": -row["high"], "high": -row["low"]}


def rounded(n: float) -> str:
    """To two significant digits."""
    digits = max(0, len(str(int(n))) - 2)
    return f"{round(n, -digits):,.0f}"


# --- effects ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """The words for one treatment: what it does to a backbone, clearly for better, for worse, or neither."""

    about: str
    subject: str
    better: str
    worse: str
    neither: str
    rule: str


AUGMENTATION = Effect(
    "augmentation",
    "augmentation",
    "helps",
    "harms",
    "makes no clear difference to any backbone",
    "Augmentation helps a backbone when augmented minus not augmented is clearly above zero, harms it when below.",
)
PRETRAINING = Effect(
    "pretraining",
    "DINO on the same images before fine-tuning",
    "helps",
    "harms",
    "makes no clear difference to any backbone",
    "It helps a backbone when fine-tuned after DINO minus trained with labels alone (with the same augmentation, where "
    "that was trained) is clearly above zero, harms it when clearly below. DINO costs time of its own.",
)


def _effect(rows: Sequence[Row], words: Effect, size: int) -> Sentence | None:
    here = sorted((r for r in rows if r["size"] == size and r["backbone"]), key=lambda r: -r["difference"])
    if not here:
        return None
    better = [row for row in here if row["clear"] and row["difference"] > 0]
    worse = [row for row in reversed(here) if row["clear"] and row["difference"] < 0]
    parts = []
    for verb, clear in ((words.better, better), (words.worse, worse)):
        if clear:
            parts.append(f"{verb} {_who(clear, len(here))}")
    start = f"{_with(size)} {words.subject}"
    if parts:
        text = f"{start} {'; it '.join(parts)}."
        if len(better) + len(worse) < len(here):
            text = text[:-1] + "; nothing else is clear."
    else:
        largest = max(here, key=lambda row: abs(row["difference"]))
        change = f"{points(largest['difference'], sign=True)} points, {limits(largest)}"
        text = f"{start} {words.neither}; the largest is {largest['backbone']}'s ({change}){doubt(largest)}."
    evidence = [_evidence(f"{r['backbone']}: {r['after']} − {r['before']}", r) for r in here]
    return _sentence(words.about, text, words.rule, evidence)


def _who(rows: Sequence[Row], total: int) -> str:
    """every backbone, most a: +8.2 points (95 % interval 5.1 to 11.0)"""
    first = rows[0]
    much = f"{points(first['difference'], sign=True)} points ({limits(first)})"
    if len(rows) == 1:
        return f"{first['backbone']}: {much}"
    who = "every backbone" if len(rows) == total else f"{len(rows)} of {total} backbones"
    return f"{who}, most {first['backbone']}: {much}"


def _change(block: Mapping[str, Any]) -> Sentence | None:
    change = block["change"]
    if change is None:
        return None
    mean = {row["size"]: row for row in block["rows"] if not row["backbone"]}
    first, last = mean[change["from"]], mean[change["to"]]
    text = (
        f"Over all backbones augmentation changes the mean by {points(first['difference'], sign=True)} points with "
        f"{change['from']:,} labelled images ({limits(first)}) and by {points(last['difference'], sign=True)} with "
        f"{change['to']:,} ({limits(last)})"
    )
    size = f"{points(abs(change['difference']))} points"
    if change["clear"]:
        verb = "shrinks" if change["difference"] > 0 else "grows"
        text += f": what it gives {verb} by {size} ({limits(_absolute(change))})."
    else:
        text += f"; that this depends on the number of images is not shown ({limits(change)} for the difference)."
    rule = "The mean effect shrinks when the 95 % interval of (smallest size minus largest size) lies above zero."
    evidence = [_evidence(f"mean effect, {change['from']:,} images minus {change['to']:,}", change)]
    return _sentence("augmentation", text, rule, evidence)


def _absolute(row: Row) -> Row:
    return row if row["difference"] >= 0 else _minus(row)


def _built_in(summary: Mapping[str, Any], size: int) -> list[Sentence]:
    return [sentence for row in summary["equivariance"] if row["size"] == size for sentence in _one_built_in(row, size)]


def _one_built_in(row: Row, size: int) -> list[Sentence]:
    a, b = row["equivariant"], row["plain"]
    rule = (
        "Built-in equivariance helps when the equivariant network minus the plain one with the same layers is clearly "
        "above zero. What augmentation takes is this difference without augmentation minus the same with it."
    )
    sentences = []
    for series, start in (("supervised", "without augmentation"), ("augmented", "with augmentation")):
        if series in row:
            difference = row[series]
            evidence = [_evidence(f"{a} − {b}, {series}", difference)]
            text = f"{_with(size)} and {start}, {_built_in_words(a, b, difference)}"
            if series == "augmented" and "taken" in row:
                text += _taken(row["taken"])
                evidence.append(_evidence(f"({a} − {b}, supervised) − ({a} − {b}, augmented)", row["taken"]))
            sentences.append(_sentence("equivariance", text + ".", rule, evidence))
    return sentences


def _built_in_words(a: str, b: str, row: Row) -> str:
    much = f"{points(row['difference'], sign=True)} points ({limits(row)})"
    if row["clear"]:
        verb = "helps" if row["difference"] > 0 else "harms"
        return f"built-in equivariance {verb}: {a} against {b}, {much}"
    return f"no effect of built-in equivariance is clear: {a} against {b}, {much}{doubt(row)}"


def _taken(row: Row) -> str:
    if not row["clear"]:
        return f"; that augmentation changes this is not shown ({limits(_minus(row))} for the change)"
    verb = "takes away" if row["difference"] > 0 else "adds"
    return f"; augmentation {verb} {points(abs(row['difference']))} points ({limits(_absolute(row))})"


def _turned(summary: Mapping[str, Any]) -> Sentence | None:
    """Loss on rotated test images, preferably of a training without rotations."""
    condition = next((name for name in TURNS if name in summary["conditions"]), None)
    series = next((name for name in SERIES if name in summary["series"]), None)
    here = [r for r in summary["robustness"] if (r["condition"], r["series"]) == (condition, series)]
    if not here:
        return None
    here.sort(key=lambda row: row["difference"])
    worse = [row for row in here if row["clear"] and row["difference"] < 0]
    rest = [row["backbone"] for row in here if row not in worse]
    losses = [f"{points(-r['difference'])} points with {r['backbone']} ({limits(_minus(r))})" for r in worse]
    ends = f"from {losses[-1]} to {losses[0]}" if len(losses) > 1 else f"by {losses[0]}" if losses else ""
    start = f"When the test images are changed ({condition}; {summary['sizes'][-1]:,} labelled images, "
    start += f"{series_words(str(series))}), "
    metric = summary["metric"].replace("_", " ")
    who = f"{len(worse)} of {len(here)} backbones" if rest else "every backbone"
    text = start + (f"{metric} falls for {who}, {ends}" if worse else "no loss is clear")
    if worse and rest:
        text += f"; no loss is clear with {named(rest)}"
    rule = "A backbone loses when changed minus plain test images is clearly below zero. Each is judged by itself."
    evidence = [_evidence(f"{row['backbone']}: {condition} − plain", row) for row in here]
    return _sentence("robustness", text + ".", rule, evidence)
