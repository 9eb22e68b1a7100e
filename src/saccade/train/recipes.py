"""Recipes: named sets of settings for a kind of image. ``--set`` still overrides each of them.

A recipe holds only what differs from the defaults, which suit stained tissue under a microscope:
there is no up or down, so flips and quarter turns are free variety. Recipes add up: ``grey,short``.
"""

from __future__ import annotations

from saccade.base.config import override
from saccade.errors import unknown
from saccade.methods.registry import card_of
from saccade.train.run_config import RunConfig, default_config

RECIPES: dict[str, tuple[str, dict[str, object]]] = {
    "microscopy": ("stained tissue and cells, in colour (the default)", {}),
    "stain": (
        "as microscopy, with stain jitter: several scanners or laboratories",
        {"views.stain": 0.2},
    ),
    "grey": (
        "structure only: colour becomes luminance, for data where colour gives the answer away",
        {"data.grey": True, "views.saturation": 0.0, "views.hue": 0.0, "views.grey_prob": 0.0},
    ),
    "natural": (
        "photographs: up stays up (the augmentations of the DINO paper)",
        {"views.vflip": False, "views.turn90": False, "views.solarise_prob": 0.2, "views.local_scale": (0.05, 0.4)},
    ),
    "xray": (
        "radiographs: left and right differ, up stays up, brightness is not anatomy",
        {"views.hflip": False, "views.vflip": False, "views.turn90": False},
    ),
    "short": (
        "minutes instead of hours: views that overlap more and are changed less, so that little training suffices",
        {
            "views.global_scale": (0.6, 1.0),
            "views.local_scale": (0.25, 0.6),
            "views.local_count": 2,
            "views.brightness": 0.2,
            "views.contrast": 0.2,
            "views.blur_prob": (0.2, 0.1, 0.1),
        },
    ),
}


def config_for(method: str, recipe: str) -> RunConfig:
    """The settings for one method and recipe; the defaults of the method override the recipe."""
    return override(apply_recipe(default_config(method), recipe), card_of(method).defaults)


def apply_recipe(run: RunConfig, names: str) -> RunConfig:
    """Apply one recipe, or several separated by commas; where two differ the later one wins."""
    for name in (part.strip() for part in names.split(",")):
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        run = override(run, RECIPES[name][1])
    return run
