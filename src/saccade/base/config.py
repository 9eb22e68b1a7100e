"""Configuration: frozen dataclasses in named sections, dotted keys, YAML on disk.

A run's configuration is a dict of sections, e.g. ``{"train": TrainConfig, "views": ViewsConfig,
"dino": DinoConfig}``. ``None`` means "decide from the data"; ``resolve`` functions elsewhere replace
every None before the first step. An unknown key is an error with a suggestion. No torch here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from saccade.base.version_0_1 import with_current_names
from saccade.errors import UsageError, unknown

Sections = dict[str, Any]


class Text(str):
    """A value typed by a person after ``key=``: read as YAML, unless the setting is a text itself."""


def _coerce(value: Any, annotation: Any, key: str) -> Any:
    """Turn a value into the field's declared type, or say what was expected."""
    if isinstance(value, Text):
        value = _read_text(value, annotation, key)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(annotation)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is type(None):
                continue
            try:
                return _coerce(value, option, key)
            except UsageError:
                continue
        raise _wrong(key, value, annotation)
    if origin is tuple:
        inner = typing.get_args(annotation)
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = [inner[0]] * len(items) if len(inner) == 2 and inner[1] is ... else list(inner)
        if len(kinds) != len(items):
            raise _wrong(key, value, annotation)
        return tuple(_coerce(item, kind, key) for item, kind in zip(items, kinds))
    if origin is typing.Literal:
        if value not in typing.get_args(annotation):
            raise _wrong(key, value, "one of " + ", ".join(map(str, typing.get_args(annotation))))
        return value
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation is float and isinstance(value, str):
        try:  # YAML reads 1e-4 (no dot) as text
            return float(value)
        except ValueError:
            raise _wrong(key, value, annotation) from None
    if annotation is str and isinstance(value, str):
        return value
    raise _wrong(key, value, annotation)


def _read_text(value: Text, annotation: Any, key: str) -> Any:
    if annotation is str or (str in typing.get_args(annotation) and value != "null"):
        return str(value)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise _wrong(key, str(value), annotation) from error


def _wrong(key: str, value: Any, annotation: Any) -> UsageError:
    name = getattr(annotation, "__name__", None) or str(annotation)
    if typing.get_origin(annotation) is not None:
        name = str(annotation)
    several = "tuple" in name
    return UsageError(
        f"the value of {key!r} does not fit",
        got=repr(value),
        expected=name,
        hint=f"several numbers go in brackets: --set {key}='[0.4, 1]'" if several else None,
    )


def all_keys(sections: Sections) -> list[str]:
    """Every dotted key of the sections: ``views.local_count`` and so on."""
    return [f"{name}.{f.name}" for name, part in sections.items() for f in dataclasses.fields(part)]


def override(sections: Sections, pairs: Mapping[str, Any] | Iterable[str]) -> Sections:
    """A copy of the sections with ``key=value`` pairs applied.

    A key is ``section.field``, or a bare field name when only one section has it.
    """
    if not isinstance(pairs, Mapping):
        pairs = dict(split_pair(pair) for pair in pairs)
    result = dict(sections)
    for key, value in pairs.items():
        name, field = _locate(result, key)
        hints = typing.get_type_hints(type(result[name]))
        value = _coerce(value, hints[field], f"{name}.{field}")
        result[name] = dataclasses.replace(result[name], **{field: value})
    return result


def split_pair(pair: str) -> tuple[str, Text]:
    """``key=value`` as typed on the command line."""
    key, sign, value = pair.partition("=")
    if not sign:
        raise UsageError("--set takes key=value", got=repr(pair), hint="for example --set views.local_count=4")
    return key.strip(), Text(value.strip())


def _locate(sections: Sections, key: str) -> tuple[str, str]:
    known = all_keys(sections)
    if key in known:
        name, _, field = key.partition(".")
        return name, field
    hits = [k for k in known if k.split(".", 1)[1] == key]
    if len(hits) == 1:
        name, _, field = hits[0].partition(".")
        return name, field
    if hits:
        raise UsageError(f"the key {key!r} is in several sections", expected="one of " + ", ".join(hits))
    raise unknown("setting", key, known)


def to_dict(sections: Sections) -> dict[str, dict[str, Any]]:
    """Plain dicts and lists, ready for YAML or JSON."""
    return {
        name: {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(part).items()}
        for name, part in sections.items()
    }


def from_dict(types_by_section: Mapping[str, type], values: Mapping[str, Mapping[str, Any]]) -> Sections:
    """The inverse of to_dict; unknown sections and keys are errors."""
    for name in values:
        if name not in types_by_section:
            raise unknown("section", name, types_by_section)
    sections: Sections = {}
    for name, kind in types_by_section.items():
        part = {name: kind()}
        sections[name] = override(part, {f"{name}.{k}": v for k, v in values.get(name, {}).items()})[name]
    return sections


def unresolved(sections: Sections) -> list[str]:
    """Keys that are still None; must be empty before the first step."""
    return [
        f"{name}.{f.name}"
        for name, part in sections.items()
        for f in dataclasses.fields(part)
        if getattr(part, f.name) is None
    ]


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def load(path: Path) -> dict[str, Any]:
    """Values of a YAML file; names of saccade 0.1 become those of today."""
    if not path.exists():
        raise UsageError("configuration file not found", got=path, hint="is this a saccade run folder?")
    return with_current_names(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
