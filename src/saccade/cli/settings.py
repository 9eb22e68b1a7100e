"""Which settings a command hands on: --config FILE, then explicit options, then --set; the later ones win."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from saccade.cli.options import SettingsFlags
from saccade.errors import UsageError, first_line

LENGTH = ("train.epochs", "train.steps", "train.minutes")
"""A run has one length: an explicit one replaces that of the file."""
LEVELS = ("tile", "region", "slide")


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What a run is asked for: the arguments of ``saccade.pretrain``, from the options and the file together."""

    data: str | None
    method: str
    backbone: str | None
    recipe: str
    settings: dict[str, Any]


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a YAML file by dotted key: ``{"train": {"batch": 8}}`` and ``{"train.batch": 8}`` are the same.

    Raises UsageError for a file that is missing or is not a mapping.
    """
    import yaml

    from saccade.base.places import with_places
    from saccade.base.version_0_1 import with_current_names

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("cannot read the settings", got=f"{path}: {error.strerror}", expected="a YAML file") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not a YAML file", got=first_line(error)) from None
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{path} holds no settings", expected="sections with KEY: VALUE, as in the config.yaml of a run"
        )
    values = with_places(with_current_names(values), path.parent)
    return _hierarchy(values) if "levels" in values else _flatten(values)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _hierarchy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a ``hierarchy.yaml``; those of a level that was given as a MODEL have no effect."""
    from saccade.hierarchy.settings import settings_of

    flat = _flatten({"hipt": values.get("hipt", {})})
    for level, settings in values["levels"].items():
        if not flat.get(f"hipt.{level}"):
            flat |= {f"{level}.{key}": value for key, value in settings_of(settings).items()}
    flat |= {"data.source": values.get("data"), "train.method": values.get("method"), "model.backbone": "hipt"}
    return flat | {"recipe": values.get("recipe")}


def merge_settings(flags: SettingsFlags, options: Mapping[str, object], drop: Collection[str] = ()) -> dict[str, Any]:
    """Settings by dotted key.

    Parameters
    ----------
    flags : SettingsFlags
        The file and the ``--set`` pairs.
    options : mapping
        Values of explicit options by dotted key; None: the option was not given.
    drop : collection of str
        Keys (``data.source``) and sections (``views.``) of the file that an explicit option replaces.
    """
    from saccade.base.config import split_pair

    explicit: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    explicit |= dict(split_pair(pair) for pair in flags.set_ or [])
    if flags.config is None:
        return explicit
    replaced = set(explicit) | {key for key in drop if not key.endswith(".")}
    values = read_config(flags.config)
    if any(key in explicit or key.partition(".")[2] in explicit for key in LENGTH):
        replaced |= set(LENGTH)
    elif values.get("train.steps") is not None:  # the config.yaml of a run has all three; the steps are exact
        replaced |= set(LENGTH) - {"train.steps"}
    sections = tuple(key for key in drop if key.endswith("."))
    stays: dict[str, Any] = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        of_level = section in LEVELS and rest in replaced
        if not (key in replaced or of_level or key.startswith(sections)):
            stays[key] = value
    return stays | explicit


def request_run(
    data: str | None,
    method: str | None,
    backbone: str | None,
    recipe: str | None,
    flags: SettingsFlags,
    options: Mapping[str, object],
) -> RunRequest:
    """What ``pretrain`` and ``plan`` are asked for. An explicit recipe or start model replaces that of the file."""
    drop = [] if recipe is None else ["views.", "data.grey", "recipe"]
    if options.get("model.weights"):
        drop += ["model.backbone", "model.slices"]
    settings = merge_settings(flags, options, drop)
    if flags.config is None:
        return RunRequest(data, method or "auto", backbone, recipe or "auto", settings)
    source = settings.pop("data.source", None)
    named_method = settings.pop("train.method", None)
    named_recipe = settings.pop("recipe", None)
    if backbone is None and settings.get("model.backbone") == "hipt":
        backbone = settings.pop("model.backbone")
    return RunRequest(
        data or source,
        str(method or named_method or "auto"),
        backbone,
        str(recipe or named_recipe or "microscopy"),
        settings,
    )
