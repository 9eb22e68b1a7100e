"""Methods by name: those of this package and those that other packages bring.

Every method is one module of its name that defines ``CARD`` (see base.MethodCard); the first line of its docstring is
the one-line description. Modules are imported when a card is asked for, so that names and descriptions
(``saccade pretrain --help``) need no torch. Other packages add methods by an entry point::

    [project.entry-points."saccade.methods"]
    my_method = "my_package.my_method:CARD"
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pydoc
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.base.plugins import load_card
from saccade.base.version_0_1 import METHODS as METHODS_OF_0_1
from saccade.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

    from saccade.methods.base import DatasetFacts, Method, MethodCard

ENTRY_POINTS = "saccade.methods"
BUILT_IN = (
    "dino",
    "dinov2",
    "moco_v3",
    "lejepa",
    "same_image",
    "relative_position",
    "mae",
    "ijepa",
    "supervised",
)
"""Modules of this package."""


@functools.cache
def _third_party() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in BUILT_IN}


def method_names() -> tuple[str, ...]:
    """Names of all methods, those of this package first."""
    return BUILT_IN + tuple(_third_party())


def _module(name: str) -> str:
    return _third_party()[name].module if name in _third_party() else f"saccade.methods.{name}"


def describe(name: str) -> str:
    """What a method asks of an image: the first line of its module, which is not imported."""
    try:
        spec = importlib.util.find_spec(_module(name))
    except ImportError:  # the error is for those who use the method
        return ""
    if spec is None or spec.origin is None:
        return ""
    with Path(spec.origin).open(encoding="utf-8") as file:
        return (pydoc.source_synopsis(file) or "").rstrip(".")


@functools.cache
def card_of(name: str) -> MethodCard:
    """The card of a method, by its name or the one it had in saccade 0.1.

    Raises
    ------
    UsageError
        For an unknown name, or an entry point that cannot be loaded.

    Examples
    --------
    >>> card_of("masked").name
    'mae'
    >>> card_of("dino").has_teacher
    True
    """
    from saccade.methods.base import MethodCard

    name = METHODS_OF_0_1.get(name, name)
    if name in BUILT_IN:
        card: MethodCard = importlib.import_module(_module(name)).CARD
    elif name in _third_party():
        card = load_card(_third_party()[name], MethodCard)
    else:
        raise unknown("method", name, method_names())
    return card


def resolve_method(name: str, config: Any, facts: DatasetFacts) -> Any:
    """The method's configuration without Nones. UsageError where the network or the data do not suit the method."""
    card = card_of(name)
    if card.needs_masking and not facts.maskable:
        raise UsageError(
            f"{name} masks patches, which this network does not support",
            expected="a vit_ backbone with linear patches and full attention",
            hint="dino works with every network",
        )
    if facts.axes == 3 and not card.supports_volumes:
        suitable = ", ".join(other for other in method_names() if card_of(other).supports_volumes)
        raise UsageError(f"{name} is for images only", got="volumes", expected=suitable)
    return card.resolve(config, facts)


def build_method(
    name: str, student: nn.Module, make_teacher: Callable[[], nn.Module], config: Any, *, seed: int
) -> Method:
    """The method around its networks.

    Parameters
    ----------
    student
        The network that learns.
    make_teacher
        Builds a network of the same shape without stochastic depth; called for methods with a teacher only.
    config
        The resolved configuration of the method.
    """
    card = card_of(name)
    networks = (student, make_teacher()) if card.has_teacher else (student,)
    return card.cls(*networks, config, seed=seed)
