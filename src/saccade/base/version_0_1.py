"""Names in the files of runs made by saccade 0.1 that have changed since. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS = {
    "masked": "mae",
    "latent": "ijepa",
    "contrast": "moco_v3",
    "pair": "same_image",
    "position": "relative_position",
}
"""Methods, which are sections of config.yaml as well. ``--method`` takes the old names, too."""
SETTINGS = {
    "dinov2.mask_share": "dinov2.mask_ratio",
    "dinov2.patches": "dinov2.patch_weight",
    "mae.share": "mae.mask_ratio",
}
"""Dotted keys; the section has its new name already."""


def _key(key: str) -> str:
    section, dot, name = key.partition(".")
    key = METHODS.get(section, section) + dot + name
    return SETTINGS.get(key, key)


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of config.yaml or hierarchy.yaml under the names of today; everything else unchanged.

    Examples
    --------
    >>> with_current_names({"train": {"method": "masked"}, "masked": {"share": 0.75}})
    {'train': {'method': 'mae'}, 'mae': {'mask_ratio': 0.75}}
    """
    result: dict[str, Any] = {}
    for section, content in values.items():
        if section == "method":
            result[section] = METHODS.get(content, content)
            continue
        name = METHODS.get(section, section)
        if section == "levels" and isinstance(content, Mapping):
            content = {level: {_key(key): value for key, value in own.items()} for level, own in content.items()}
        elif isinstance(content, Mapping):
            prefix = f"{name}."
            content = {_key(prefix + key).removeprefix(prefix): value for key, value in content.items()}
            if "method" in content:
                content["method"] = METHODS.get(content["method"], content["method"])
        result[name] = content
    return result
