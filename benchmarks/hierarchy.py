"""Does a hierarchy see how regions lie? HIPT at rest against mean pooling and a random second level, on drawn slides.

Three sets of slides that no level has seen, heads judged by nested cross-validation with patients apart:

    arrangement   half of the tissue is nests; both classes have the same amounts of every pattern, and only what
                  borders on what in a nest differs
    faint         the same in a tenth of the tissue
    composition   the amounts differ, and places say nothing

The hierarchy learns without labels from other slides, drawn as those of ``arrangement``.

    python benchmarks/hierarchy.py --out DIR            everything; what is there already is used again
    python benchmarks/hierarchy.py --out DIR --tile RUN  begin with a tile level that is there
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from saccade import api
from saccade.data.synthetic.slides import Drawing, draw_slides
from saccade.evaluation.nested_cv import NestedConfig
from saccade.hierarchy.evaluate_slides import HeadOptions, to_markdown
from saccade.hierarchy.settings import FILE
from saccade.hierarchy.train_levels import finished

TILE_PX, REGION_TILES = 64, 8
SETS: dict[str, dict[str, Any]] = {
    "arrangement": {"label": "arrangement", "share": 0.5, "seed": 2},
    "faint": {"label": "arrangement", "share": 0.1, "seed": 3},
    "composition": {"label": "composition", "share": 0.5, "seed": 4},
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


class Said:
    """Messages with the seconds that passed; no bars."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.began:6.0f} s] {text.splitlines()[0]}", flush=True)

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


def hierarchy(out: Path, args: argparse.Namespace, console: Said) -> Path:
    """Trained on slides of both kinds of sets, that no head is judged on."""
    run = out / "hipt"
    if finished(run / "region"):
        return run
    if (run / FILE).exists():
        return api.resume(run, console=console)
    learned = slides(out, "slides-unlabelled", args.unlabelled, args.size, SETS["arrangement"] | {"seed": 1})
    settings = SETTINGS | {"region.train.steps": args.region_steps, "train.seed": args.seed}
    settings["region.model.positions"] = args.positions
    if args.tile:
        settings["hipt.tile"] = str(Path(args.tile).resolve())
    else:
        settings |= {"tile.model.backbone": "resnet10_w32", "tile.train.steps": args.tile_steps}
    return api.pretrain(
        learned, out=run, backbone="hipt", method="lejepa", recipe="short", settings=settings, console=console
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    console, results = Said(), {}
    run = hierarchy(args.out, args, console)
    nested = NestedConfig(fractions=(1.0, 0.25), repeats=args.repeats, seed=args.seed)
    options = HeadOptions(heads=tuple(args.heads.split(",")), nested=nested)
    for label in args.sets.split(","):
        place = args.out / f"result-{label}"
        if (place / "slides.json").exists():
            found = json.loads((place / "slides.json").read_text())
        else:
            data = slides(args.out, f"slides-{label}", args.labelled, args.size, SETS[label])
            table = table_of(data, label)
            found = api.finetune_slides(run, table, out=place, options=options, console=console)
        results[label] = found["rows"]
        print(f"\n## {label}\n\n{to_markdown(found)}", flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
