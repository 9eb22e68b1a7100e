"""Settings of views, and their defaults from the data. See views.py and volume_views.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saccade.base.config import resolve_section
from saccade.base.contracts import Role
from saccade.errors import UsageError

COLOUR = {"saturation": 0.2, "hue": 0.1, "grey_prob": 0.2, "stain": 0.0}  # DINO's values; stain is ours
SCAN = {"gamma": 0.3, "bias_field": 0.3, "noise": 0.05, "low_resolution_prob": 0.25}  # of volumes
USUAL_ASPECT = (0.75, 1.3333)


@dataclass(frozen=True)
class ViewsConfig:
    """Which crops are made and how they are changed; defaults are DINO's where not decided from the data."""

    global_count: int = 2
    local_count: int | None = None
    global_px: int | None = None
    local_px: int | None = None
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Fraction of the image's area; for volumes, of the sampled cube."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    aspect: tuple[float, float] = USUAL_ASPECT
    """Width by height; views of volumes are cubes."""
    hflip: bool = True
    vflip: bool = True
    zflip: bool | None = None
    """Head and foot of a volume change places; decided: as ``vflip``."""
    turn90: bool = True
    """Quarter turns; of volumes about z."""
    rotate_degrees: float = 0.0
    """Free rotation by up to this angle either way; 0: only flips and quarter turns."""
    jitter_prob: float = 0.8
    """Of changes of brightness and contrast, and of saturation and hue, or of gamma, bias field and noise."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float | None = None
    hue: float | None = None
    """Fraction of a full turn."""
    grey_prob: float | None = None
    stain: float | None = None
    """Strength of the jitter of haematoxylin and eosin; 0: off."""
    gamma: float | None = None
    """Largest change of the logarithm of a volume's gamma."""
    bias_field: float | None = None
    """Strength of a smooth field over a volume, as coils of an MR scanner make it."""
    noise: float | None = None
    """Largest standard deviation of a volume's noise, where values are 0 to 1."""
    low_resolution_prob: float | None = None
    """Of a volume that is seen as if scanned up to twice as coarse."""
    blur_prob: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """First global view, other global views, local views."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """In pixels where a global view has 224; scaled with its size, the same for local views."""
    solarise_prob: float = 0.0
    """In the global views after the first. DINO has 0.2; stained tissue loses its white background by it."""
    tile_dropout: float = 0.0
    """Fraction of the tiles of a grid that each view leaves out; grids of vectors only."""
    vector_dropout: float = 0.0
    """Fraction of the channels of a grid that each view leaves out; grids of vectors only."""
    vector_jitter: float = 0.0
    """Shift of every channel of a view of a grid, in its standard deviations; grids of vectors only."""


@dataclass(frozen=True, kw_only=True)
class ResolvedViews(ViewsConfig):
    """Settings of views without None."""

    local_count: int
    global_px: int
    local_px: int
    zflip: bool
    saturation: float
    hue: float
    grey_prob: float
    stain: float
    gamma: float
    bias_field: float
    noise: float
    low_resolution_prob: float


ONLY_IMAGES = (
    "global_scale",
    "local_scale",
    "aspect",
    "rotate_degrees",
    "jitter_prob",
    "blur_prob",
    "solarise_prob",
    *COLOUR,
    *SCAN,
    "zflip",
)
ONLY_GRIDS = ("tile_dropout", "vector_dropout", "vector_jitter")


def resolve_views(
    config: ViewsConfig,
    *,
    size_px: int,
    channels: int,
    patch: int,
    local_count: int,
    whole_patches: bool = True,
    axes: int = 2,
) -> ResolvedViews:
    """Fill every None. Local crops: DINO's 96 of 224 pixels, rounded up to a multiple of ``patch``.

    Settings without effect are zero: those of colour for images without, those of scans for images, and the other way
    round. Asking for them there is an error (UsageError), and so is a range or probability that makes no sense, or,
    with ``whole_patches``, a crop that is not a multiple of it.
    """
    global_px = config.global_px or size_px
    local_px = config.local_px or math.ceil(global_px * 96 / 224 / patch) * patch
    volumes = axes == 3
    kind = "volumes" if volumes else f"images with {channels} channels"
    only = {
        **_where(config, COLOUR, channels == 3 and not volumes, kind),
        **_where(config, SCAN, volumes, "images"),
        **_where(config, {"zflip": config.vflip}, volumes, "images"),
    }
    if volumes:
        if config.solarise_prob:
            raise UsageError("views.solarise_prob has no effect on volumes", hint="leave it out")
        if config.aspect not in (USUAL_ASPECT, (1.0, 1.0)):
            raise UsageError("views.aspect has no effect on volumes: views are cubes", hint="leave it out")
        only["aspect"] = (1.0, 1.0)
    resolved = resolve_section(
        ResolvedViews,
        config,
        global_px=global_px,
        local_px=local_px,
        local_count=local_count if config.local_count is None else config.local_count,
        **only,
    )
    for name in ONLY_GRIDS:
        if getattr(config, name):
            raise UsageError(f"views.{name} has no effect on {'volumes' if volumes else 'images'}", hint="leave it out")
    _check(resolved, patch if whole_patches else 1)
    return resolved


def _where(config: ViewsConfig, defaults: Mapping[str, Any], applicable: bool, kind: str) -> dict[str, Any]:
    """Values of settings that only apply to some data: as set, or the default; empty where not applicable."""
    resolved = {}
    for name, value in defaults.items():
        setting = getattr(config, name)
        if setting and not applicable:
            raise UsageError(f"views.{name} has no effect on {kind}", hint="leave it out")
        resolved[name] = setting if setting is not None else (value if applicable else type(value)())
    return resolved


def resolve_grid_views(config: ViewsConfig, *, size_px: int, local_count: int) -> ResolvedViews:
    """Fill every None for grids of ``size_px`` tiles: crops of 14 and 6 of 16 tiles, as in HIPT.

    UsageError for settings that only images have, and for values out of range.
    """
    usual = ViewsConfig()
    for name in ONLY_IMAGES:
        value = getattr(config, name)
        if value and value != getattr(usual, name) and np.any(value):
            raise UsageError(f"views.{name} has no effect on grids of vectors", got=value, hint="leave it out")
    resolved = resolve_section(
        ResolvedViews,
        config,
        global_px=config.global_px or max(1, round(size_px * 14 / 16)),
        local_px=config.local_px or max(1, round(size_px * 6 / 16)),
        local_count=local_count if config.local_count is None else config.local_count,
        zflip=False,
        jitter_prob=0.0,
        blur_prob=(0.0, 0.0, 0.0),
        saturation=0.0,
        hue=0.0,
        grey_prob=0.0,
        stain=0.0,
        gamma=0.0,
        bias_field=0.0,
        noise=0.0,
        low_resolution_prob=0.0,
    )
    if config.vector_jitter < 0:
        raise UsageError("views.vector_jitter is negative", got=config.vector_jitter, expected="0 or more")
    for name in ("tile_dropout", "vector_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"views.{name} must be a fraction", got=getattr(config, name), expected="0 to below 1")
    _check(resolved, 1)
    return resolved


def _check(config: ResolvedViews, patch: int) -> None:
    """Raise UsageError, with the name of the setting, for values that cannot be meant."""
    ranges = {
        "global_scale": 0 < config.global_scale[0] <= config.global_scale[1] <= 1,
        "local_scale": 0 < config.local_scale[0] <= config.local_scale[1] <= 1,
        "aspect": 0 < config.aspect[0] <= config.aspect[1],
        "blur_sigma": 0 <= config.blur_sigma[0] <= config.blur_sigma[1],
    }
    for name, good in ranges.items():
        if not good:
            raise UsageError(f"views.{name} is not a range", got=getattr(config, name), expected="low, high")
    for name in ("jitter_prob", "grey_prob", "blur_prob", "solarise_prob", "low_resolution_prob"):
        value = getattr(config, name)
        if not all(0 <= p <= 1 for p in (value if isinstance(value, tuple) else (value,))):
            raise UsageError(f"views.{name} is not a probability", got=value, expected="0 to 1")
    shares = ("brightness", "contrast", "saturation", "hue", "stain", "gamma", "bias_field", "noise")
    for name in (*shares, "rotate_degrees", "local_count"):
        if getattr(config, name) < 0:
            raise UsageError(f"views.{name} is negative", got=getattr(config, name), expected="0 or more")
    if config.global_count < 1:
        raise UsageError("views.global_count is too small", got=config.global_count, expected="1 or more")
    for name in ("global_px", "local_px"):
        if getattr(config, name) % patch:
            raise UsageError(
                f"views.{name} does not fit the backbone", got=getattr(config, name), expected=f"a multiple of {patch}"
            )


class ViewGroup(NamedTuple):
    """Views of one role: their numbers among all views, and the side of their input."""

    role: Role
    numbers: range
    side_px: int


def view_groups(config: ResolvedViews) -> list[ViewGroup]:
    """Global views, then local ones."""
    first_local = config.global_count
    return [
        ViewGroup("global", range(first_local), config.global_px),
        ViewGroup("local", range(first_local, first_local + config.local_count), config.local_px),
    ]
