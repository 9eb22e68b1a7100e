"""Methods by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from saccade.errors import unknown
from saccade.methods.base import Method
from saccade.methods.dino import Dino, DinoConfig, resolve_dino

# name: configuration, what fills its Nones, the method itself
METHODS: dict[str, tuple[type, Any, Any]] = {
    "dino": (DinoConfig, resolve_dino, Dino),
}


def _entry(name: str) -> tuple[type, Any, Any]:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def config_type(name: str) -> type:
    return _entry(name)[0]


def resolve_method(name: str, config: Any, *, images: int, batch: int, steps: int, has_batch_norm: bool) -> Any:
    """The method's configuration without Nones; ``batch`` counts all images of an optimiser step."""
    return _entry(name)[1](config, images=images, batch=batch, steps=steps, has_batch_norm=has_batch_norm)


def build_method(name: str, student: nn.Module, teacher: nn.Module, config: Any, *, seed: int) -> Method:
    """``config`` is resolved; ``teacher`` has the student's shape without stochastic depth."""
    return _entry(name)[2](student, teacher, config, seed=seed)
