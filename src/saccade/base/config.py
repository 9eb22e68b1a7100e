"""Configuration: frozen dataclasses in named sections, dotted keys, YAML on disk.

A configuration has sections, e.g. ``data``, ``model`` and ``train`` of a run (train/run_config.py); a key is
``section.field``. ``None`` means "decide from the data"; ``resolve`` functions elsewhere replace it. An unknown key is
an error with a suggestion. No torch here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import yaml

from saccade.base.places import with_places
from saccade.base.version_0_1 import with_current_names
from saccade.errors import UsageError, first_line, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as Section

S = TypeVar("S", bound="Section")
R = TypeVar("R", bound="Section")


class Configuration(Protocol):
    """Several sections, each a frozen dataclass, by name."""

    @property
    def sections(self) -> Mapping[str, Section]: ...

    def with_sections(self, sections: Mapping[str, Section]) -> Self: ...


C = TypeVar("C", bound=Configuration)


class TypedText(str):
    """A value typed after ``key=`` on the command line: read as YAML, unless the setting is itself a text."""


def _coerce(value: Any, annotation: Any, key: str) -> Any:
    """Turn a value into the field's declared type, or say what was expected."""
    if isinstance(value, TypedText):
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


def _read_text(value: TypedText, annotation: Any, key: str) -> Any:
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


def override(config: C, pairs: Mapping[str, Any] | Iterable[str]) -> C:
    """A copy of a configuration with ``key=value`` pairs applied.

    Parameters
    ----------
    config
        Several sections, e.g. a ``RunConfig``.
    pairs
        Values by key, or texts ``key=value``. A key is ``section.field``, or a field name that only one section has.

    Raises
    ------
    UsageError
        An unknown key (with the nearest known one), or a value of the wrong type.
    """
    return config.with_sections(_override(config.sections, pairs))


def override_section(name: str, section: S, pairs: Mapping[str, Any] | Iterable[str]) -> S:
    """As ``override`` for a single section, whose keys are ``name.field`` or ``field``."""
    return _override({name: section}, pairs)[name]


def _override(sections: Mapping[str, S], pairs: Mapping[str, Any] | Iterable[str]) -> dict[str, S]:
    if not isinstance(pairs, Mapping):
        pairs = dict(split_pair(pair) for pair in pairs)
    result = dict(sections)
    for key, value in pairs.items():
        name, field = _locate(result, key)
        hints = typing.get_type_hints(type(result[name]))
        value = _coerce(value, hints[field], f"{name}.{field}")
        result[name] = dataclasses.replace(result[name], **{field: value})
    return result


def split_pair(pair: str) -> tuple[str, TypedText]:
    """``key=value`` as typed on the command line."""
    key, sign, value = pair.partition("=")
    if not sign:
        raise UsageError("--set takes key=value", got=repr(pair), hint="for example --set views.local_count=4")
    return key.strip(), TypedText(value.strip())


def _keys(sections: Mapping[str, Section]) -> list[str]:
    return [f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)]


def _locate(sections: Mapping[str, Section], key: str) -> tuple[str, str]:
    """The section and the field of a key."""
    keys = _keys(sections)
    matches = [key] if key in keys else [full for full in keys if full.split(".", 1)[1] == key]
    if len(matches) > 1:
        raise UsageError(f"the key {key!r} is in several sections", expected="one of " + ", ".join(matches))
    if not matches:
        raise unknown("setting", key, keys)
    name, _, field = matches[0].partition(".")
    return name, field


def resolve_section(kind: type[R], section: Section, **decided: Any) -> R:
    """A section as its resolved type: ``decided`` replaces values of ``section``, and no None may be left."""
    values = vars(section) | decided
    undecided = [name for name, value in values.items() if value is None]
    if undecided:
        raise UsageError("settings without a value", got=", ".join(undecided), expected=kind.__name__)
    return kind(**values)


def section_to_dict(section: Section) -> dict[str, Any]:
    """Plain values and lists, ready for YAML or JSON."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(section).items()}


def to_dict(config: Configuration) -> dict[str, dict[str, Any]]:
    """Every section by name, as ``section_to_dict``."""
    return {name: section_to_dict(section) for name, section in config.sections.items()}


def section_from_dict(name: str, kind: type[S], values: Mapping[str, Any]) -> S:
    """The inverse of ``section_to_dict``; missing keys have their defaults, unknown ones raise UsageError."""
    return override_section(name, kind(), {f"{name}.{key}": value for key, value in values.items()})


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def load(path: Path) -> dict[str, Any]:
    """Values of a YAML file, paths from ``data.json`` beside it; names of saccade 0.1 become those of today."""
    if not path.exists():
        raise UsageError("configuration file not found", got=path, hint="is this a saccade run folder?")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, Mapping):
            raise UsageError(f"{path} does not hold settings", got=type(values).__name__, expected="sections with keys")
        return with_places(with_current_names(values), path.parent)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line} is not valid YAML", got=error.problem) from error
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML", got=first_line(error)) from error
