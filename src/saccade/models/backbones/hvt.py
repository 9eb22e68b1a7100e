"""The card of HVT, a ViT that pools its tokens: hvt_{micro,tiny,small}_patchP. No torch here; see ``nn/hvt.py``.

``_wN`` after the patch sets the token width.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.models.card import BackboneCard
from saccade.models.settings import BackboneSettings, Capabilities, heads_for_width, is_rate, option

if TYPE_CHECKING:
    from saccade.models.nn.network import Network

PATTERN = re.compile(r"(?P<head>(?P<base>hvt_[a-z]+)_patch(?P<patch>[1-9]\d*))(?:_w(?P<width>[1-9]\d*))?(?P<tail>)")


@dataclass(frozen=True)
class HVTSettings(BackboneSettings):
    """Everything that makes one HVT.

    Parameters
    ----------
    dim, depth, heads : int
        Token width, layers, and attention heads of each.
    pools : tuple of int
        Indices of the blocks before which max pooling halves the sides of the map.
    patch : int
        Side of a patch in pixels.
    drop_path : float
        Stochastic depth of the last layer; rises linearly from 0 in the first.
    """

    dim: int
    depth: int
    heads: int
    pools: tuple[int, ...]
    patch: int = 16
    drop_path: float = option(0.0, is_rate)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(transformer=True, axes=(2, 3), checkpointing=True, patch_px=self.patch, any_patch=True)

    @property
    def unit_px(self) -> int:
        return self.patch

    @property
    def width(self) -> int:
        return self.dim


PRESETS = {
    "hvt_micro": HVTSettings("hvt_micro", dim=128, depth=6, heads=4, pools=(2, 4)),
    "hvt_tiny": HVTSettings("hvt_tiny", dim=192, depth=12, heads=3, pools=(4, 8)),
    "hvt_small": HVTSettings("hvt_small", dim=384, depth=12, heads=6, pools=(4, 8)),
}


def _read(preset: HVTSettings, match: re.Match[str]) -> dict[str, Any]:
    return {"patch": int(match["patch"])}


def _widen(settings: HVTSettings, width: int) -> HVTSettings:
    heads = heads_for_width(width, settings.dim / settings.heads)
    return dataclasses.replace(settings, dim=width, heads=heads)


def _build(settings: HVTSettings) -> Network:
    from saccade.models.nn.hvt import HVT

    return HVT(settings)


CARD = BackboneCard(
    "HVT",
    PRESETS,
    _build,
    pattern=PATTERN,
    read=_read,
    widen=_widen,
    examples=tuple(f"{base}_patch{patch}" for base in PRESETS for patch in (8, 16)),
)
