"""Backbones by name: the cards, and what a name means in numbers, without building anything. No torch here.

Names follow timm; each card documents the grammar of its family. ``_wN`` in any of them sets the width.
The same names build networks for volumes (``axes`` 3, taken from the data like ``channels``) where the family supports
it, with cubes for patches and kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from saccade.base.plugins import installed_cards
from saccade.errors import UsageError, unknown
from saccade.models.backbones import equivariant, hvt, resnet, swin, vit
from saccade.models.card import BackboneCard
from saccade.models.settings import BackboneSettings

CARDS: tuple[BackboneCard[Any], ...] = (vit.CARD, resnet.CARD, equivariant.CARD, swin.CARD, hvt.CARD)
ENTRY_POINTS = "saccade.backbones"
"""Entry-point group of other packages; each entry refers to a ``BackboneCard``."""


def cards() -> tuple[BackboneCard[Any], ...]:
    """The built-in cards, then those of other packages. Raises UsageError for a plug-in that cannot be loaded."""
    return CARDS + installed_cards(ENTRY_POINTS, BackboneCard)


def names() -> list[str]:
    """Names to offer; any patch size, window and width build as well.

    Examples
    --------
    >>> "vit_tiny_patch8" in names()
    True
    """
    return [name for card in cards() for name in card.names]


def card_of(name: str) -> BackboneCard[Any]:
    """The card of the family that a name belongs to.

    Raises
    ------
    UsageError
        No family has such a name. The message suggests the closest one.
    """
    return _lookup(name)[0]


def family_of(settings: BackboneSettings) -> BackboneCard[Any]:
    """The card whose networks have settings of this type, whatever their name."""
    return next(card for card in cards() if type(settings) in {type(preset) for preset in card.presets.values()})


def parse(name: str) -> BackboneSettings:
    """The settings of a name, options at their defaults.

    Parameters
    ----------
    name : str
        For example ``vit_tiny_patch8_window7`` or ``resnet18_c4``.

    Raises
    ------
    UsageError
        No family has such a name, or its width is not possible. The message suggests the closest name.

    Examples
    --------
    >>> parse("vit_tiny_patch8_window7").attention
    'window:7'
    >>> parse("resnet18_c4").capabilities.equivariant
    True
    """
    return _lookup(name)[1]


def _lookup(name: str) -> tuple[BackboneCard[Any], BackboneSettings]:
    # Plug-ins are loaded only where no built-in family has the name: they may import torch.
    for group in (lambda: CARDS, lambda: installed_cards(ENTRY_POINTS, BackboneCard)):
        for card in group():
            settings = card.parse(name)
            if settings is not None:
                return card, settings
    raise unknown("backbone", name, names())


def base_of(name: str) -> str:
    """The name without options and width: ``resnet18`` for ``resnet18_c4_w32``. Raises UsageError as ``parse``."""
    match = card_of(name).match(name)
    assert match is not None
    return str(match["base"])


def with_width(name: str, width: int) -> str:
    """The name of the same network with another width; a width in the name is replaced. Raises UsageError as ``parse``.

    Examples
    --------
    >>> with_width("vit_tiny_patch8_window7", 96)
    'vit_tiny_patch8_w96_window7'
    """
    match = card_of(name).match(name)
    assert match is not None
    return f"{match['head']}_w{width}{match['tail']}"


def families_with(option: str) -> list[str]:
    """First words of the names, e.g. ``vit``, of networks that have an option."""
    words = set()
    for card in cards():
        words |= {base.partition("_")[0] for base, preset in card.presets.items() if option in preset.options}
    return sorted(words)


def for_axes(settings: BackboneSettings, axes: int) -> BackboneSettings:
    """The same network for images (2) or volumes (3); UsageError where its family does not support them."""
    if axes == settings.axes:
        return settings
    if axes not in (2, 3):
        raise UsageError("unsupported number of axes", got=axes, expected="2 (images) or 3 (volumes)")
    if axes not in settings.capabilities.axes:
        raise UsageError(
            f"{settings.name} is for {'images' if axes == 3 else 'volumes'} only",
            got="volumes" if axes == 3 else "images",
            expected="vit_..., hybrid_..., hvt_... or a plain resnet..." if axes == 3 else None,
            hint="vit_tiny_patch8_window4 has windows in three dimensions; "
            f"--set model.slices=16 applies {settings.name} to slices"
            if axes == 3
            else None,
        )
    return dataclasses.replace(settings, axes=axes)


def configured(
    name: str, *, channels: int = 3, size_px: int = 224, axes: int = 2, options: Mapping[str, object] | None = None
) -> BackboneSettings:
    """The settings of a name with everything decided.

    Parameters
    ----------
    name : str
        Name of a backbone.
    channels, size_px, axes : int
        Of the input, see ``BackboneSettings``.
    options : mapping, optional
        Values of the options of the family.

    Raises
    ------
    UsageError
        The name, an option or its value is unknown, or a number is out of range.
    """
    card, settings = _lookup(name)
    settings = for_axes(settings, axes)
    values = dict(options or {})
    for key in values:
        if key not in settings.options:
            raise unknown(f"option of {name}", key, settings.options)
    if channels < 1 or size_px < 1:
        raise UsageError(
            "channels and size_px must be positive", got=f"channels {channels}, size_px {size_px}", expected="1 or more"
        )
    if card.for_size is not None:
        decided = card.for_size(size_px)
        values |= {key: value for key, value in decided.items() if not values.get(key)}
    return dataclasses.replace(settings, channels=channels, size_px=size_px, **values)  # type: ignore[arg-type]
