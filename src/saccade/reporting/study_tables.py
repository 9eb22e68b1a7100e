"""The tables of a study, written as HTML, Markdown and CSV. Scores and differences are in per cent.

The table of two backbones has the form of Table 10 of Caron et al. 2021 (DINO, arXiv:2104.14294).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade.evaluation.findings import SERIES, between, rounded, series_words
from saccade.reporting.evaluation_results import points
from saccade.reporting.html import Html, breakable, count, h, number, score_table, sequence
from saccade.reporting.run_files import mapping

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TableCell:
    """A value, its interval, and whether the difference is clear (None for scores)."""

    value: str
    below: str = ""
    clear: bool | None = None


@dataclass(frozen=True)
class ScoreTable:
    """head: names of the columns; blocks: a heading (or "") and rows, each a name and its cells."""

    label: str
    caption: str
    head: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[tuple[str, tuple[TableCell, ...]], ...]], ...]

    def __bool__(self) -> bool:
        return any(rows for _, rows in self.blocks)


# --- cells --------------------------------------------------------------------------------------


def span(row: Row, *, sign: bool = False) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{points(low, sign=sign)} to {points(high, sign=sign)}"


def score(row: Row | None) -> TableCell:
    return TableCell("–") if row is None else TableCell(points(number(row.get("mean"))), span(row))


def difference(row: Row | None) -> TableCell:
    if row is None:
        return TableCell("–")
    return TableCell(points(number(row.get("difference")), sign=True), span(row, sign=True), bool(row.get("clear")))


def ordered(series: Sequence[str]) -> list[str]:
    """The known series in their usual order, then the others."""
    return [s for s in SERIES if s in series] + [s for s in series if s not in SERIES]


def labelled(summary: Row) -> tuple[str, ...]:
    return tuple(f"{count(size)} images" for size in sequence(summary.get("sizes")))


# --- tables -------------------------------------------------------------------------------------


def curve_table(summary: Row) -> ScoreTable:
    rows = {(r["backbone"], r["series"], r["size"]): r for r in sequence(summary.get("points"))}
    sizes, backbones = sequence(summary.get("sizes")), sequence(summary.get("backbones"))
    blocks = []
    for series in ordered(sequence(summary.get("series"))):
        lines = [(b, tuple(score(rows.get((b, series, n))) for n in sizes)) for b in backbones]
        blocks.append((series_words(series), tuple(lines)))
    label = f"{metric_name(summary)} in % by backbone and training images"
    caption = f"{metric_name(summary).capitalize()} in %, mean over seeds; below it its 95 % interval."
    return ScoreTable(label, caption, ("backbone", *labelled(summary)), tuple(blocks))


def metric_name(summary: Row) -> str:
    return {"auroc": "AUROC"}.get(str(summary.get("metric")), str(summary.get("metric", "accuracy")).replace("_", " "))


def reference_table(summary: Row) -> ScoreTable:
    """Every backbone minus the first one."""
    backbones, sizes = sequence(summary.get("backbones")), sequence(summary.get("sizes"))
    first = str(backbones[0]) if backbones else ""
    blocks = []
    for series in ordered(sequence(summary.get("series"))):
        lines = [(b, tuple(difference(between(summary, b, first, series, n)) for n in sizes)) for b in backbones[1:]]
        blocks.append((series_words(series), tuple(lines)))
    caption = f"Each backbone minus {first}, in percentage points, with 95 % intervals."
    return ScoreTable("differences from the first backbone", caption, ("backbone", *labelled(summary)), tuple(blocks))


def pair_table(summary: Row) -> ScoreTable:
    """Every backbone minus every later one."""
    sizes, backbones = sequence(summary.get("sizes")), sequence(summary.get("backbones"))
    names = [(a, b) for i, a in enumerate(backbones) for b in backbones[i + 1 :]]
    blocks = []
    for series in ordered(sequence(summary.get("series"))):
        lines = [(f"{a} − {b}", tuple(difference(between(summary, a, b, series, n)) for n in sizes)) for a, b in names]
        blocks.append((series_words(series), tuple(lines)))
    caption = "The first backbone minus the second, in percentage points, with 95 % intervals."
    return ScoreTable("differences of every two backbones", caption, ("pair", *labelled(summary)), tuple(blocks))


def effect_table(summary: Row, block: Row, words: str) -> ScoreTable:
    """The effect of one treatment by backbone and size; the mean comes last."""
    rows = {(r["backbone"], r["size"]): r for r in sequence(block.get("rows"))}
    names = [b for b in sequence(summary.get("backbones")) if any(key[0] == b for key in rows)]
    lines = [(b, tuple(difference(rows.get((b, n))) for n in sequence(summary.get("sizes")))) for b in names]
    if len(names) > 1:
        lines.append(
            ("mean over backbones", tuple(difference(rows.get(("", n))) for n in sequence(summary.get("sizes"))))
        )
    caption = f"{words}, in percentage points, with 95 % intervals."
    return ScoreTable(words, caption, ("backbone", *labelled(summary)), (("", tuple(lines)),))


def opposite(row: Row) -> Row:
    """The difference with its sign reversed."""
    low, high = -number(row.get("high")), -number(row.get("low"))
    return dict(row) | {"difference": -number(row.get("difference")), "low": low, "high": high}


def crossing_table(summary: Row) -> ScoreTable:
    """Where one backbone passes another; other pairs are counted."""
    blocks = []
    rows = sequence(summary.get("crossings"))
    for series in ordered(sequence(summary.get("series"))):
        series_rows = [r for r in rows if r["series"] == series]
        passing = sorted((r for r in series_rows if r["verdict"] == "passes"), key=lambda r: number(r["n"]))
        lines = []
        for r in passing:
            where = TableCell(f"{rounded(r['n'])} images", f"{rounded(r['low'])} to {rounded(r['high'])}")
            start, end = difference(opposite(r["start"])), difference(opposite(r["end"]))
            lines.append((f"{r['second']} passes {r['first']}", (where, start, end)))
        ahead = sum(r["verdict"] == "stays ahead" for r in series_rows)
        counts = f"{len(series_rows)} pairs: {len(passing)} cross, {ahead} keep their order, "
        counts += f"{len(series_rows) - len(passing) - ahead} are not clear at both ends"
        nothing = ("no clear crossing", (TableCell("–"), TableCell("–"), TableCell("–")))
        if series_rows:
            blocks.append((f"{series_words(series)} ({counts})", tuple(lines or [nothing])))
    sizes = labelled(summary) or ("", "")
    caption = (
        "A crossing is listed only where the order of the two is clear at both ends. The last columns give the lead of "
        "the second backbone at the smallest and the largest size, in percentage points with 95 % intervals."
    )
    head = ("crossing", "at", f"with {sizes[0]}", f"with {sizes[-1]}")
    return ScoreTable("crossings", caption, head, tuple(blocks))


def ten_table(summary: Row) -> ScoreTable:
    """Two backbones, their difference and the mean difference: the form of Table 10."""
    given = mapping(summary.get("table"))
    left, right = str(given.get("left", "")), str(given.get("right", ""))
    blocks = []
    for block in sequence(given.get("blocks")):
        lines = []
        for r in block["rows"]:
            means = [TableCell(points(number(r.get(key)))) for key in ("left", "right")]
            lines.append((f"{count(r['size'])} images", (*means, difference(r))))
        lines.append(("mean difference", (TableCell(""), TableCell(""), difference(block["mean"]))))
        blocks.append((series_words(block["series"]), tuple(lines)))
    caption = f"{metric_name(summary).capitalize()} in %; Δ is {left} minus {right}, in percentage points."
    return ScoreTable(f"{left} and {right}", caption, ("labels", left, right, "Δ"), tuple(blocks))


def robustness_table(summary: Row) -> ScoreTable:
    conditions = sequence(summary.get("conditions"))
    rows = {(r["backbone"], r["series"], r["condition"]): r for r in sequence(summary.get("robustness"))}
    size = (sequence(summary.get("sizes")) or [math.nan])[-1]
    plain = {(r["backbone"], r["series"]): r for r in sequence(summary.get("points")) if r["size"] == size}
    blocks = []
    for series in ordered(sequence(summary.get("series"))):
        lines = []
        for b in sequence(summary.get("backbones")):
            if any((b, series, c) in rows for c in conditions):
                cells = [difference(rows.get((b, series, c))) for c in conditions]
                lines.append((b, (score(plain.get((b, series))), *cells)))
        blocks.append((series_words(series), tuple(lines)))
    blocks = [block for block in blocks if block[1]]
    caption = (
        f"Trained on {count(size)} images. Plain: {metric_name(summary)} in %; then the effect of each change of the "
        "test images, in percentage points with 95 % intervals."
    )
    return ScoreTable("corrupted test images", caption, ("backbone", "plain", *map(str, conditions)), tuple(blocks))


def cost_table(study: Row) -> ScoreTable:
    costs, backbones = mapping(study.get("costs")), sequence(study.get("backbones"))
    first = number(mapping(costs.get(backbones[0])).get("images_per_second")) if backbones else math.nan
    lines = []
    for name in backbones:
        backbone_costs = mapping(costs.get(name))
        if not backbone_costs:
            continue
        speed = number(backbone_costs.get("images_per_second"))
        slower = first / speed if speed > 0 else math.nan
        cells = [
            TableCell(scaled(number(backbone_costs.get("parameters")) / 1e6)),
            TableCell(scaled(number(backbone_costs.get("flops")) / 1e9)),
            TableCell(count(backbone_costs.get("tokens"))),
            TableCell(count(speed)),
            TableCell(f"{slower:.1f}" if math.isfinite(slower) else "–"),
            TableCell(count(backbone_costs.get("peak_mib"))),
        ]
        lines.append((name, tuple(cells)))
    caption = (
        "Operations are those of one image, forward. Images/s and memory were measured in training on this machine."
    )
    head = (
        "backbone",
        "parameters, million",
        "operations, 10⁹",
        "tokens",
        "images/s",
        "relative time",
        "memory, MiB",
    )
    return ScoreTable("costs", caption, head, (("", tuple(lines)),))


def scaled(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


# --- writing ------------------------------------------------------------------------------------


def to_html(table: ScoreTable, kind: str = "scores named") -> Html:
    """The table as HTML; empty blocks are left out."""
    head = h("tr", None, [h("th", {"scope": "col"}, breakable(name)) for name in table.head])
    bodies = []
    for name, rows in table.blocks:
        if rows:
            group = h("th", {"colspan": len(table.head), "scope": "rowgroup"}, name)
            lines = [
                h("tr", None, h("th", {"scope": "row"}, breakable(r)), [_td(c) for c in cells]) for r, cells in rows
            ]
            bodies.append(h("tbody", None, h("tr", {"class": "group"}, group) if name else None, lines))
    return score_table(table.label, [table.caption], head, bodies, len(table.head), kind)


def _td(cell: TableCell) -> Html:
    below = h("small", None, cell.below) if cell.below else None
    if cell.clear is None:
        return h("td", None, cell.value, below)
    if cell.clear:
        return h("td", None, h("strong", None, cell.value), below)
    return h("td", {"class": "unclear"}, cell.value, below, h("small", None, "not clear"))


def to_markdown(table: ScoreTable) -> str:
    """One Markdown table per block; clear differences are bold."""
    parts = []
    for name, rows in table.blocks:
        if rows:
            lines = [_line([plain(name) for name in table.head]), _line(["---"] * len(table.head))]
            lines += [_line([plain(r), *map(_written, cells)]) for r, cells in rows]
            parts.append("\n".join([f"**{plain(name)}**", "", *lines] if name else lines))
    return "\n\n".join([plain(table.caption), *parts]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _written(cell: TableCell) -> str:
    value = f"**{cell.value}**" if cell.clear else cell.value
    return f"{value} ({cell.below})" if cell.below else value


def plain(text: object) -> str:
    """Text that Markdown shows literally: no markup, no new column, no new line."""
    words = str(text)
    for mark in ("\\", "`", "*", "|", "<", "[", "#", "&"):
        words = words.replace(mark, "\\" + mark)
    words = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", words)  # inside a word it marks nothing
    return " ".join(words.split())


def to_csv(summary: Row) -> str:
    """One line per point of a curve."""
    file = io.StringIO()
    columns = ("backbone", "series", "size", "seeds", "mean", "low", "high")
    writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row in sequence(summary.get("points")):
        writer.writerow({key: "" if row.get(key) is None else row[key] for key in columns})
    return file.getvalue()
