"""Roles of backbones in a comparison: the CNN, the ViT, and the plain counterpart of an equivariant network."""

from __future__ import annotations

from collections.abc import Sequence

from saccade.errors import SaccadeError
from saccade.models.registry import base_of, parse
from saccade.models.settings import Capabilities


def _capabilities(backbones: Sequence[str]) -> dict[str, Capabilities]:
    """The capabilities of the backbones whose names are valid."""
    capabilities = {}
    for name in backbones:
        try:
            capabilities[name] = parse(name).capabilities
        except SaccadeError:
            continue
    return capabilities


def default_columns(backbones: Sequence[str]) -> tuple[str, str] | None:
    """The first CNN and the first network with attention, plain ones before others; None where one is missing."""
    capabilities = _capabilities(backbones)
    cnns = [name for name, can in capabilities.items() if not can.transformer]
    vits = [name for name, can in capabilities.items() if can.has_attention]
    cnns.sort(key=lambda name: capabilities[name].equivariant)
    vits.sort(key=lambda name: not capabilities[name].maskable or capabilities[name].reads_grids)
    return (cnns[0], vits[0]) if cnns and vits else None


def couples(backbones: Sequence[str]) -> list[tuple[str, str]]:
    """Every equivariant network with the first plain one of the same layers."""
    capabilities = _capabilities(backbones)
    pairs = []
    for name, can in capabilities.items():
        if can.equivariant:
            plain = [
                other
                for other, theirs in capabilities.items()
                if not theirs.equivariant and base_of(other) == base_of(name)
            ]
            pairs += [(name, plain[0])] if plain else []
    return pairs
