"""Settings of a hierarchy, how they are split over its levels, and the files in its folder.

RUN/hierarchy.yaml        settings                RUN/data.json   training slides, for the contamination guard
RUN/tile, region, slide   one training run each   RUN/grids       regions, the input of the upper levels
RUN/features/LEVEL        one file of vectors per slide
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.base import config, run_folder
from saccade.errors import UsageError, unknown
from saccade.train.settings import AUTO

NAME = "hipt"
FILE = run_folder.HIERARCHY
Level = Literal["tile", "region", "slide"]
LEVELS: tuple[Level, ...] = ("tile", "region", "slide")
MINUTES: dict[Level, float] = {"tile": 0.6, "region": 0.3, "slide": 0.1}
"""Fraction of the training time that each level gets."""
EVERY = ("train.steps", "train.epochs", "train.seed", "train.device", "train.precision", "train.on_collapse")
"""Settings for every level; other settings without the name of a level are for the tile level."""


@dataclass(frozen=True)
class HiptConfig:
    """Settings of the hierarchy itself. Size and resolution of tiles are ``data.tile_px`` and ``data.mpp``."""

    region_px: int = 4096
    """Side of a region in pixels at the resolution of the tiles; a multiple of the tile size."""
    min_tissue: float = 0.25
    """Minimum fraction of a region's tiles that are tissue."""
    tile: str = ""
    """MODEL to use as the tile level, unchanged; empty: train one."""
    region: str = ""
    """MODEL to use as the region level; empty: train one."""
    slide: str = ""
    """MODEL to use as the slide level; empty: train one; ``none``: represent a slide by the mean of its regions."""
    method: str = "dino"
    """Pretext task of the region and slide levels."""

    def side(self, tile_px: int) -> int:
        """Number of tiles along the side of a region. Raises UsageError where tiles do not divide it."""
        if self.region_px % tile_px or self.region_px < 2 * tile_px:
            near = max(2, round(self.region_px / tile_px)) * tile_px
            raise UsageError(
                "tiles do not divide the region",
                got=f"hipt.region_px={self.region_px}, tiles of {tile_px} px",
                expected=f"for example hipt.region_px={near}",
            )
        return self.region_px // tile_px


@dataclass(frozen=True)
class HierarchyRequest:
    """Everything that defines the training of a hierarchy.

    Parameters
    ----------
    data : str
        The slides.
    method, recipe : str
        Pretext task and augmentation recipe of the tile level.
    hipt : HiptConfig
        Settings of the hierarchy itself.
    levels : dict
        Settings of each level, by dotted key.
    """

    data: str
    method: str
    recipe: str
    hipt: HiptConfig
    levels: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def method_and_recipe(method: str, recipe: str) -> tuple[str, str]:
    """What ``auto`` means for a hierarchy: the method of HIPT (Chen et al. 2022) and the recipe for stained tissue."""
    return ("dino" if method == AUTO else method), ("microscopy" if recipe == AUTO else recipe)


def split_settings(
    data: str, method: str, recipe: str, settings: Mapping[str, Any], *, backbone: str | None = None
) -> HierarchyRequest:
    """Split the settings of a hierarchy over its levels.

    Parameters
    ----------
    data, method, recipe : str
        The slides, and pretext task and recipe of the tile level.
    settings : mapping
        Dotted keys. ``tile.KEY``, ``region.KEY`` and ``slide.KEY`` are for one level, ``hipt.KEY`` for the hierarchy
        itself. ``train.minutes`` is divided between the levels; the keys in ``EVERY`` go to each of them; all others
        go to the tile level.
    backbone : str, optional
        Backbone of the tile level.

    Raises
    ------
    UsageError
        An unknown key, a value out of range, or settings of a level that is not trained.
    """
    levels: dict[str, dict[str, Any]] = {level: {} for level in LEVELS}
    levels["region"]["model.backbone"] = "grid_tiny"
    levels["slide"]["model.backbone"] = "grid_micro"
    if backbone is not None:
        levels["tile"]["model.backbone"] = backbone
    hipt_values: dict[str, Any] = {}
    explicit: dict[str, dict[str, Any]] = {level: {} for level in LEVELS}
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        if first in LEVELS and rest:
            explicit[first][rest] = value
        elif first == NAME:
            hipt_values[key] = value
        elif key == "train.minutes":
            for level, share in MINUTES.items():
                levels[level][key] = _minutes(value) * share
        elif key in EVERY:
            for level in LEVELS:
                levels[level][key] = value
        else:
            levels["tile"][key] = value
    hipt = config.override_section(NAME, HiptConfig(), hipt_values)
    for level in LEVELS:
        merged = levels[level] | explicit[level]
        if any(key in explicit[level] for key in ("train.steps", "train.epochs", "train.minutes")):
            merged = {
                k: v
                for k, v in merged.items()
                if k in explicit[level] or not k.endswith(("steps", "epochs", "minutes"))
            }
        levels[level] = {key: _plain(value) for key, value in merged.items()}
    for level in LEVELS:
        given = getattr(hipt, level)
        if given and explicit[level]:
            raise UsageError(
                f"settings of the {level} level have no effect",
                got=f"hipt.{level}={given}",
                hint="leave out one of them",
            )
    if not 0 <= hipt.min_tissue <= 1:
        raise UsageError("hipt.min_tissue must be a fraction between 0 and 1", got=hipt.min_tissue)
    return HierarchyRequest(data, method, recipe, hipt, levels)


def _minutes(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError("train.minutes must be a number", got=repr(value)) from None


def _plain(value: Any) -> Any:
    """A value as YAML stores it; text from the command line is parsed when the level reads it."""
    if isinstance(value, config.TypedText):
        return {"typed": str(value)}
    return list(value) if isinstance(value, tuple) else value


def settings_of(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one level as stored in ``hierarchy.yaml``."""
    return {k: config.TypedText(v["typed"]) if isinstance(v, Mapping) else v for k, v in levels.items()}


def is_hierarchy(model: str | Path) -> bool:
    """Whether MODEL is the folder of a hierarchy."""
    return (Path(model) / FILE).is_file()


def read_request(run: Path) -> HierarchyRequest:
    """Read ``hierarchy.yaml``. Raises UsageError where ``run`` is not a hierarchy."""
    if not is_hierarchy(run):
        raise UsageError("not the folder of a hierarchy", got=run, expected=f"{FILE} in it")
    values = config.load(run / FILE)
    if "least" in values["hipt"]:  # the name in version 0.1
        values["hipt"]["min_tissue"] = values["hipt"].pop("least")
    for name in values["hipt"]:
        if name not in {field.name for field in dataclasses.fields(HiptConfig)}:
            raise unknown("setting", f"hipt.{name}", [f"hipt.{f.name}" for f in dataclasses.fields(HiptConfig)])
    return HierarchyRequest(**(values | {"hipt": HiptConfig(**values["hipt"])}))
