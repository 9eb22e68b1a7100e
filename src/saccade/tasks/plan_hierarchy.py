"""What a hierarchy costs before it is trained: tiles and regions are counted on the slides, and each level is priced
as the run that it is (see planning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade import runtime
from saccade.base import config, frames
from saccade.cost.flops import cost_of
from saccade.cost.plan_report import Planned, format_duration, format_operations
from saccade.data.feature_grids import cut_blocks
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import UsageError
from saccade.hierarchy.settings import HierarchyRequest, HiptConfig, Level, settings_of, split_settings
from saccade.hierarchy.train_levels import FEWEST_REGIONS, FEWEST_SLIDES, config_of, count_regions, open_tiles
from saccade.models.backbones.weights import load_model
from saccade.tasks import plan
from saccade.tasks.plan import PlanOptions

FLOAT = 4  # bytes of a number of a vector
WHAT: dict[Level, str] = {"tile": "tiles", "region": "regions", "slide": "slides"}


@dataclass(frozen=True)
class PlannedHierarchy:
    """The price of every level that would be trained, and of looking once at all tiles in between.

    flops     operations of that look          seconds   by the rate of the tile level's steps; None: not measured
    """

    slides: int
    tiles: int
    regions: int
    levels: dict[Level, Planned]
    flops: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        counts = {"slides": self.slides, "tiles": self.tiles, "regions": self.regions}
        look = {"flops": self.flops, "seconds": self.seconds}
        return counts | {"levels": {level: plan.to_dict() for level, plan in self.levels.items()}, "embedding": look}

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())

    def text(self) -> str:
        lines = [f"{self.slides:,} slides: {self.tiles:,} tiles, {self.regions:,} regions"]
        if self.regions < FEWEST_REGIONS:
            lines[0] += f", TOO FEW: {FEWEST_REGIONS} regions at least are learned from"
        for level in ("tile", "region", "slide"):
            if level in self.levels:
                lines += ["", f"--- {level} level, {self.levels[level].images:,} {WHAT[level]} ---", ""]
                lines.append(self.levels[level].text())
            if level == "tile":
                time = (
                    "" if self.seconds is None else f", about {format_duration(self.seconds)} beside reading the slides"
                )
                lines += ["", f"Then every tile is looked at once: {format_operations(self.flops)}{time}."]
        if "slide" not in self.levels:
            lines += ["", f"No slide level is trained: below {FEWEST_SLIDES} slides, or as it was asked for."]
        return "\n".join(lines)


def plan_hierarchy(
    data: str | Path | None, method: str, recipe: str, settings: Mapping[str, Any], options: PlanOptions | None = None
) -> PlannedHierarchy:
    """The price of ``pretrain DATA --backbone hipt`` with these settings; nothing is trained.

    Raises UsageError, ModelError, DataError.
    """
    options = options or PlanOptions()
    if data is None or options.attention:
        raise UsageError("the plan of a hierarchy needs slides, and takes no --attention", hint="saccade plan SLIDES")
    request = split_settings(str(data), method, recipe, settings)
    tiles = open_tiles(request.data, settings_of(request.levels["tile"]))
    hipt, side = request.hipt, request.hipt.side(tiles.tile_px)
    regions, slides = count_regions(tiles, side, hipt.min_tissue), len(tiles.entries)
    plans: dict[Level, Planned] = {}
    if not hipt.tile:
        run = config.override(config_of("tile", request, request.data), {"data.split": "all"})
        device = runtime.pick_device(run.train.device)
        facts, run = plan.inspect_data(request.data, run, device, 2)
        plans["tile"] = plan.priced(run, facts, options)
        network = plans["tile"].load.network
    else:
        network = load_model(hipt.tile).backbone.settings
    each = cost_of(network)
    if not hipt.region and regions >= FEWEST_REGIONS:
        plans["region"] = _upper("region", request, regions, each.dim + 1, side, options)
    if "region" in plans and not hipt.slide and slides >= FEWEST_SLIDES:
        across = _typical_side(tiles, side, hipt)
        plans["slide"] = _upper(
            "slide", request, slides, cost_of(plans["region"].load.network).dim + 1, across, options
        )
    flops = len(tiles) * each.flops
    speed = plans["tile"].speed if "tile" in plans else None
    return PlannedHierarchy(slides, len(tiles), regions, plans, flops, None if speed is None else flops / speed.rate)


def _upper(
    level: Level, wanted: HierarchyRequest, count: int, channels: int, side: int, options: PlanOptions
) -> Planned:
    """The price of a level over grids of vectors, ``side`` of them across."""
    run = config_of(level, wanted, "")
    device = runtime.pick_device(run.train.device)
    run = plan.of_side(run, side, device, 2)
    return plan.priced(run, plan.DataFacts(count, channels, FLOAT), dataclasses.replace(options, axes=2))


def _typical_side(tiles: SlideTiles, side: int, hipt: HiptConfig) -> int:
    """Median over slides of the regions across, along the shorter side."""
    sides = []
    for cut in tiles.tilings:
        corners = np.array([(b.top, b.left) for b in cut_blocks(Path(), cut.grid.cells, side, hipt.min_tissue)]) // side
        if len(corners):
            sides.append(int((np.ptp(corners, axis=0) + 1).min()))
    return max(1, round(float(np.median(sides)))) if sides else 1
