"""Frozen HIPT against mean pooling and a random second level, on synthetic slides: does it encode spatial arrangement?

Three sets of slides on which no level was trained; heads are evaluated by nested cross-validation over patients:

    arrangement   half of the tissue is nests; both classes have the same amount of every pattern and differ only in
                  which patterns are neighbours inside a nest
    faint         the same in a tenth of the tissue
    composition   the amounts differ; positions carry no information

The hierarchy is trained without labels on other slides of the kind ``arrangement``.

    python benchmarks/hierarchy.py --out DIR [--json] [--smoke]   results that exist are used again
    python benchmarks/hierarchy.py --out DIR --tile RUN           start from a trained tile level

The last line is one JSON object: AUROC of the best head on the hierarchy (``ours``) and of the best baseline (``peer``)
on the first set, their ``ratio``, and all rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from saccade import api
from saccade.data.synthetic.slides import Drawing, draw_slides
from saccade.evaluation.nested_cv import NestedConfig
from saccade.evaluation.protocol import EvalReport
from saccade.hierarchy.evaluate_slides import HIERARCHY, HeadOptions, to_markdown
from saccade.hierarchy.settings import FILE
from saccade.hierarchy.train_levels import finished

TILE_PX, REGION_TILES = 64, 8
SETS: dict[str, dict[str, Any]] = {
    "arrangement": {"label": "arrangement", "share": 0.5, "seed": 2},
    "faint": {"label": "arrangement", "share": 0.1, "seed": 3},
    "composition": {"label": "composition", "share": 0.5, "seed": 4},
}
SMOKE = {
    "out": harness.TEMPORARY,
    "size": 512,
    "unlabelled": 4,
    "labelled": 12,
    "tile_steps": 2,
    "region_steps": 2,
    "sets": "composition",
    "repeats": 1,
}
SETTINGS: dict[str, Any] = {
    "data.mpp": 1.0,
    "data.tile_px": TILE_PX,
    "data.split": "all",
    "hipt.region_px": TILE_PX * REGION_TILES,
    "hipt.method": "lejepa",
    "hipt.slide": "none",
    "region.model.backbone": "grid_nano",
    "region.model.pool": "mean",
    "region.train.batch": 128,
    "region.optim.lr": 3e-3,
    "region.views.global_px": 5,
    "region.views.local_count": 0,
    "region.views.vector_jitter": 0.5,
}


class TimedConsole:
    """Messages with the seconds since the start, on stderr; no progress bars."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.start = quiet, time.perf_counter()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"[{time.perf_counter() - self.start:6.0f} s] {text.splitlines()[0]}", file=sys.stderr, flush=True)

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        if step == total and "loss" not in logs:
            self.say(f"{total:,} done")


def slides(out: Path, name: str, count: int, size: int, what: dict[str, Any]) -> Path:
    """Drawn slides in a folder of their own, one tile a region of the drawing."""
    return draw_slides(Drawing(n=count, size=size, region=TILE_PX, **what), out / name)


def table_of(folder: Path, name: str) -> Path:
    """The manifest of drawn slides without a split, and with patients of its own: every drawing counts them from 0."""
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        rows = [
            {"path": r["path"], "label": r["label"], "patient": f"{name} {r['patient']}"} for r in csv.DictReader(file)
        ]
    table = folder / f"{name}.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "patient"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return table


def hierarchy(out: Path, options: argparse.Namespace, console: TimedConsole) -> Path:
    """Trained on slides of both kinds of sets, that no head is judged on."""
    run = out / "hipt"
    if finished(run / "region"):
        return run
    if (run / FILE).exists():
        return api.resume(run, console=console)
    learned = slides(out, "slides-unlabelled", options.unlabelled, options.size, SETS["arrangement"] | {"seed": 1})
    settings = SETTINGS | {"region.train.steps": options.region_steps, "train.seed": options.seed}
    settings["region.model.positions"] = options.positions
    if options.smoke:
        settings["region.train.batch"] = 4
    if options.tile:
        settings["hipt.tile"] = str(Path(options.tile).resolve())
    else:
        settings |= {"tile.model.backbone": "resnet10_w32", "tile.train.steps": options.tile_steps}
    return api.pretrain(
        learned, out=run, backbone="hipt", method="lejepa", recipe="short", settings=settings, console=console
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tile", help="MODEL of the tile level; without it one is trained")
    parser.add_argument("--size", type=int, default=1536, help="side of a slide in pixels")
    parser.add_argument("--unlabelled", type=int, default=240, help="slides that the hierarchy learns from")
    parser.add_argument("--labelled", type=int, default=96, help="slides of each set that heads are judged on")
    parser.add_argument("--tile-steps", type=int, default=300)
    parser.add_argument("--region-steps", type=int, default=1000)
    parser.add_argument("--positions", default="conv", help="how the region level knows where tiles lie")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--heads", default="abmil", help="abmil,transformer: the second takes ten times as long")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = harness.parse(parser, SMOKE, argv, required=("out",))
    console = TimedConsole(options.json)
    run = hierarchy(options.out, options, console)
    nested = NestedConfig(
        fractions=(1.0,) if options.smoke else (1.0, 0.25), repeats=options.repeats, seed=options.seed
    )
    choices = HeadOptions(heads=tuple(options.heads.split(",")), nested=nested)
    results: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for label in options.sets.split(","):
        out = options.out / f"result-{label}"
        if (out / "slides.json").exists():
            report = EvalReport(**json.loads((out / "slides.json").read_text()))
        else:
            data = slides(options.out, f"slides-{label}", options.labelled, options.size, SETS[label])
            table = table_of(data, label)
            report = api.finetune_slides(run, table, out=out, options=choices, console=console)
        results[label] = report.rows
        lines.append(f"\n## {label}\n\n{to_markdown(report)}")
    rows = [row for row in next(iter(results.values())) if row["metric"] == "auroc" and row["fraction"] == 1.0]
    ours = max(row["mean"] for row in rows if row["model"].startswith(HIERARCHY))
    peer = max(row["mean"] for row in rows if not row["model"].startswith(HIERARCHY))
    summary = {"ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours / max(peer, 1e-9), 3)}
    harness.finish(options, summary | {"rows": results}, lines)


if __name__ == "__main__":
    main()
