"""What a hierarchy is made of: its settings, how they are shared out over the levels, and the files of its folder.

RUN/hierarchy.yaml   what was asked for          RUN/data.json   slides that it learned from, for the guard
RUN/tile, region, slide   one ordinary run each  RUN/grids       blocks that the upper levels read
RUN/features/LEVEL   one file of vectors a slide
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.base import config, run_folder
from saccade.errors import UsageError, unknown

NAME = "hipt"
FILE = run_folder.HIERARCHY
Level = Literal["tile", "region", "slide"]
LEVELS: tuple[Level, ...] = ("tile", "region", "slide")
MINUTES: dict[Level, float] = {"tile": 0.6, "region": 0.3, "slide": 0.1}
"""How the minutes of a hierarchy are shared out."""
EVERY = ("train.steps", "train.epochs", "train.seed", "train.device", "train.precision", "train.on_collapse")
"""Settings that every level gets; others without the name of a level are those of the tile level."""


@dataclass(frozen=True)
class HiptConfig:
    """The hierarchy itself. The tile's side and resolution are ``data.tile_px`` and ``data.mpp``."""

    region_px: int = 4096
    """Side of a region, in pixels at the resolution of the tiles; a multiple of the tile's side."""
    least: float = 0.25
    """Share of a region's tiles that must be tissue."""
    tile: str = ""
    """MODEL of the tile level that is there already: it is used as it is, and no tile level is trained."""
    region: str = ""
    """The same for the region level."""
    slide: str = ""
    """The same for the slide level; ``none``: there is none, and a slide is the mean of its regions."""
    method: str = "dino"
    """How the upper levels learn."""

    def side(self, tile_px: int) -> int:
        """Tiles along a region. UsageError where tiles do not divide it."""
        if self.region_px % tile_px or self.region_px < 2 * tile_px:
            near = max(2, round(self.region_px / tile_px)) * tile_px
            raise UsageError(
                "tiles do not divide the region",
                got=f"hipt.region_px={self.region_px}, tiles of {tile_px} px",
                expected=f"for example hipt.region_px={near}",
            )
        return self.region_px // tile_px


@dataclass(frozen=True)
class Wanted:
    """What a hierarchy was asked for.

    data     the slides            recipe, method   of the tile level
    levels   dotted settings of each level
    """

    data: str
    method: str
    recipe: str
    hipt: HiptConfig
    levels: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def share_out(
    data: str, method: str, recipe: str, settings: Mapping[str, Any], *, backbone: str | None = None
) -> Wanted:
    """Settings by level: ``tile.KEY``, ``region.KEY``, ``slide.KEY``; ``hipt.KEY`` is of the hierarchy itself.

    Minutes are shared out; steps, epochs, seed, device and precision go to every level; the rest is the tile's.
    """
    levels: dict[str, dict[str, Any]] = {level: {} for level in LEVELS}
    levels["region"]["model.backbone"] = "grid_tiny"
    levels["slide"]["model.backbone"] = "grid_micro"
    if backbone is not None:
        levels["tile"]["model.backbone"] = backbone
    own: dict[str, Any] = {}
    named: dict[str, dict[str, Any]] = {level: {} for level in LEVELS}
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        if first in LEVELS and rest:
            named[first][rest] = value
        elif first == NAME:
            own[key] = value
        elif key == "train.minutes":
            for level, share in MINUTES.items():
                levels[level][key] = _minutes(value) * share
        elif key in EVERY:
            for level in LEVELS:
                levels[level][key] = value
        else:
            levels["tile"][key] = value
    hipt = config.override_section(NAME, HiptConfig(), own)
    for level in LEVELS:
        found = levels[level] | named[level]
        if any(key in named[level] for key in ("train.steps", "train.epochs", "train.minutes")):
            found = {
                k: v for k, v in found.items() if k in named[level] or not k.endswith(("steps", "epochs", "minutes"))
            }
        levels[level] = {key: _plain(value) for key, value in found.items()}
    for level in LEVELS:
        given = getattr(hipt, level)
        if given and named[level]:
            raise UsageError(
                f"settings of the {level} level have no effect",
                got=f"hipt.{level}={given}",
                hint="leave out one of them",
            )
    if not 0 <= hipt.least <= 1:
        raise UsageError("hipt.least is a share", got=hipt.least, expected="0 to 1")
    return Wanted(data, method, recipe, hipt, levels)


def _minutes(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError("train.minutes is a number", got=repr(value)) from None


def _plain(value: Any) -> Any:
    """As YAML keeps it; what was typed stays text until the level's own settings read it."""
    if isinstance(value, config.TypedText):
        return {"typed": str(value)}
    return list(value) if isinstance(value, tuple) else value


def settings_of(levels: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of what ``hierarchy.yaml`` keeps of one level."""
    return {k: config.TypedText(v["typed"]) if isinstance(v, Mapping) else v for k, v in levels.items()}


def is_hierarchy(model: str | Path) -> bool:
    """Whether MODEL is the folder of a hierarchy."""
    return (Path(model) / FILE).is_file()


def read_wanted(run: Path) -> Wanted:
    """What the hierarchy in ``run`` was asked for. Raises UsageError where there is none."""
    if not is_hierarchy(run):
        raise UsageError("not the folder of a hierarchy", got=run, expected=f"{FILE} in it")
    values = config.load(run / FILE)
    for name in values["hipt"]:
        if name not in {field.name for field in dataclasses.fields(HiptConfig)}:
            raise unknown("setting", f"hipt.{name}", [f"hipt.{f.name}" for f in dataclasses.fields(HiptConfig)])
    return Wanted(**(values | {"hipt": HiptConfig(**values["hipt"])}))
