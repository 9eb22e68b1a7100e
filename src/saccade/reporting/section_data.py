"""The report section on the training data: images, volumes, tiles of slides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saccade.base import run_folder
from saccade.base.places import base_name
from saccade.reporting.html import (
    Html,
    breakable,
    count,
    details,
    facts,
    h,
    missing,
    number,
    percent,
    section,
    sequence,
    table,
)
from saccade.reporting.run_files import RunFiles, mapping
from saccade.reporting.section_figures import figure, pictures

SHOWN_DUPLICATES, SHOWN_LABELS, SHOWN_DAMAGED, SHOWN_SLIDES = 20, 60, 200, 60


def data_audit(run: RunFiles) -> Html:
    data = run.data
    if not data:
        return section("data", "Images", missing("data.json is missing."))
    duplicates = [ids for ids in sequence(data.get("duplicates")) if isinstance(ids, list)]
    damaged = [d for d in sequence(data.get("damaged")) if isinstance(d, Mapping)]
    items: list[tuple[object, object]] = [
        ("source", breakable(base_name(str(data.get("source", "–"))))),
        ("images", count(data.get("images"))),
        ("used", count(data.get("used")) + (f" ({data['split']})" if data.get("split") else "")),
        ("size, rows × columns", _sizes(data.get("size_px"))),
        ("channels", f"{count(data.get('channels'))} · {data.get('dtype', '–')}"),
        ("groups", count(data.get("groups"))),
        ("byte-identical sets", count(len(duplicates))),
        ("damaged files", count(len(damaged))),
    ]
    blocks: list[object] = [
        facts(items),
        *slide_blocks(run),
        *pictures(run, ("data",)),
        _labels(mapping(data.get("labels"))),
    ]
    if duplicates:
        rows = [[str(i + 1), ", ".join(map(str, ids))] for i, ids in enumerate(duplicates[:SHOWN_DUPLICATES])]
        more = f", the first {SHOWN_DUPLICATES} shown" if len(duplicates) > SHOWN_DUPLICATES else ""
        body = table("identical images", ["set", "images"], rows)
        blocks.append(details(f"Byte-identical images ({len(duplicates)} sets{more})", body))
    if damaged:
        rows = [[str(d.get("id")), str(d.get("reason"))] for d in damaged[:SHOWN_DAMAGED]]
        body = table("damaged files", ["file", "reason"], rows)
        blocks.append(details(f"Damaged files, left out ({len(damaged)})", body))
    return section("data", "Images", *blocks)


def _sizes(value: Any) -> str:
    size = mapping(value)
    low, high = size.get("min"), size.get("max")
    if not (isinstance(low, list) and isinstance(high, list)):
        return "–"
    texts = [" × ".join(map(str, v)) for v in (low, high)]
    return f"{texts[0]} px" if low == high else f"{texts[0]} to {texts[1]} px"


def _labels(labels: Mapping[str, Any]) -> Html | None:
    if not labels:
        return missing("No labels. Pretraining does not need them.")
    rows, most = [], max(number(n) for n in labels.values())
    for name, n in list(labels.items())[:SHOWN_LABELS]:
        wide = 100 * number(n) / most if most > 0 and math.isfinite(number(n)) else 0
        bar = h("span", {"class": "bar", "style": f"width:{wide:.1f}%", "aria-hidden": "true"})
        rows.append([breakable(name), count(n), bar])
    more = f" (the first {SHOWN_LABELS} of {len(labels)})" if len(labels) > SHOWN_LABELS else ""
    return table("images per label", ["label" + more, "images", ""], rows, "bars")


def slide_blocks(run: RunFiles) -> list[object]:
    """The slides of the tiles: a sheet of some with their masks, and one line each."""
    record = mapping(run.data.get("slides"))
    lines = [line for line in sequence(record.get("slides")) if isinstance(line, Mapping)]
    if not lines:
        return []
    tiles = f"tiles of {count(record.get('tile_px'))} px at {number(record.get('mpp')):g} µm per pixel"
    blocks: list[object] = []
    if (run.folder / run_folder.SLIDES_PNG).is_file():
        caption = f"Outlined: tissue (green), pen marks (magenta), out of focus (orange). Dots: {tiles}."
        title = "Tissue masks of the slides." if len(lines) <= 8 else "Tissue masks of some slides."
        entry = {"file": run_folder.SLIDES_PNG.rpartition("/")[2], "title": title, "caption": caption}
        blocks.append(figure(run, entry | {"alt": "Slides with outlines of tissue, pen marks and parts out of focus."}))
    head = ["slide", "µm/px", "background", "tissue", "pen marks", "out of focus", "tiles", ""]
    more = f", the first {SHOWN_SLIDES} shown" if len(lines) > SHOWN_SLIDES else ""
    body = table("the slides", head, [_slide_cells(line) for line in lines[:SHOWN_SLIDES]])
    blocks.append(details(f"Slides ({count(len(lines))}{more})", body))
    unreadable = [d for d in sequence(record.get("unreadable")) if isinstance(d, Mapping)]
    if unreadable:
        rows = [[breakable(d.get("id")), str(d.get("reason"))] for d in unreadable[:SHOWN_DAMAGED]]
        body = table("slides that cannot be read", ["slide", "reason"], rows)
        blocks.append(details(f"Slides that cannot be read, left out ({len(unreadable)})", body))
    skipped = [str(name) for name in sequence(record.get("without_resolution"))]
    if skipped:
        rows = [[breakable(name)] for name in skipped[:SHOWN_DAMAGED]]
        body = table("slides without a resolution", ["slide"], rows)
        blocks.append(details(f"Slides without a resolution, left out ({len(skipped)})", body))
    return blocks


def _slide_cells(line: Mapping[str, Any]) -> list[object]:
    return [
        breakable(line.get("id")),
        f"{number(line.get('spacing_um')):.4g}",
        line.get("mode"),
        *(_part(number(line.get(key))) for key in ("tissue", "pen", "blur")),
        count(line.get("tiles")),
        line.get("note"),
    ]


def _part(value: float) -> str:
    return "–" if value == 0 else percent(round(value, 3)) if value >= 0.0005 else "under 0.1 %"
