"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from saccade.errors import unknown
from saccade.methods.base import Facts, Method
from saccade.methods.dino import Dino, DinoConfig, resolve_dino
from saccade.methods.supervised import Supervised, SupervisedConfig, resolve_supervised

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Entry:
    """config: the dataclass; resolve(config, facts) fills its Nones; build(student, make_teacher, config, seed)."""

    config: type
    resolve: Callable[[Any, Facts], Any]
    build: Callable[[nn.Module, Make, Any, int], Method]


METHODS: dict[str, Entry] = {
    "dino": Entry(DinoConfig, resolve_dino, lambda net, twin, config, seed: Dino(net, twin(), config, seed=seed)),
    "supervised": Entry(
        SupervisedConfig, resolve_supervised, lambda net, twin, config, seed: Supervised(net, config, seed=seed)
    ),
}


def _entry(name: str) -> Entry:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def config_type(name: str) -> type:
    return _entry(name).config


def resolve_method(name: str, config: Any, facts: Facts) -> Any:
    """The method's configuration without Nones."""
    return _entry(name).resolve(config, facts)


def build_method(name: str, student: nn.Module, make_teacher: Make, config: Any, *, seed: int) -> Method:
    """``config`` is resolved; ``make_teacher`` builds the student's shape without stochastic depth, if it is needed."""
    return _entry(name).build(student, make_teacher, config, seed)
