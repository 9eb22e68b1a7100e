"""What the names of backbones say about a comparison: which is the CNN, which the ViT, which has its plain twin."""

from __future__ import annotations

from collections.abc import Sequence

from saccade.errors import SaccadeError
from saccade.models.registry import parse
from saccade.models.settings import EquivariantSettings, ResNetSettings, Settings, ViTSettings


def _settings(backbone: str) -> Settings | None:
    try:
        return parse(backbone)
    except SaccadeError:
        return None


def default_columns(backbones: Sequence[str]) -> tuple[str, str] | None:
    """The first CNN (a plain one where there is one) and the first ViT (a plain one where there is one)."""
    known = {name: _settings(name) for name in backbones}
    cnns = [name for name, s in known.items() if isinstance(s, (ResNetSettings, EquivariantSettings))]
    vits = [name for name, s in known.items() if isinstance(s, ViTSettings)]
    cnns.sort(key=lambda name: isinstance(known[name], EquivariantSettings))
    vits.sort(key=lambda name: not _plain_vit(known[name]))
    return (cnns[0], vits[0]) if cnns and vits else None


def _plain_vit(settings: Settings | None) -> bool:
    return isinstance(settings, ViTSettings) and settings.stem == "linear" and settings.attention == "full"


def couples(backbones: Sequence[str]) -> list[tuple[str, str]]:
    """Every equivariant network and the first plain one with the same layers."""
    known = {name: _settings(name) for name in backbones}
    found = []
    for name, own in known.items():
        if isinstance(own, EquivariantSettings):
            others = [n for n, s in known.items() if isinstance(s, ResNetSettings) and s.layers == own.layers]
            found += [(name, others[0])] if others else []
    return found
