"""The card of the equivariant ResNets: resnet{10,18}_{c4,d4,c8}. No torch here; the network is nn/equivariant_resnet.

c4: equivariant to 4 rotations; d4: to 4 rotations and flips; c8: to 8 rotations. ``_wN`` sets the channels of the first
stage, over all orientations.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.errors import UsageError
from saccade.models.backbones.resnet import PRESETS as RESNETS
from saccade.models.backbones.resnet import stem_for
from saccade.models.card import BackboneCard
from saccade.models.settings import ORDER, BackboneSettings, Capabilities, Group, MapStem, one_of, option

if TYPE_CHECKING:
    from saccade.models.nn.network import Network

PATTERN = re.compile(r"(?P<head>(?P<base>resnet\d+)_(?P<group>c4|d4|c8))(?:_w(?P<width>[1-9]\d*))?(?P<tail>)")


@dataclass(frozen=True)
class EquivariantSettings(BackboneSettings):
    """A ResNet of basic blocks whose channels are fields over a symmetry group.

    Parameters
    ----------
    layers : tuple of int
        Blocks of each of the four stages.
    group : {"c4", "d4", "c8"}
        The symmetry group.
    width : int
        Channels of the first stage: fields times orientations.
    stem : {"imagenet", "small", "cifar"}
        The first convolution; chosen by the size of the input where left open.
    """

    layers: tuple[int, int, int, int]
    group: Group = "c4"
    width: int = 64
    stem: MapStem = option("imagenet", one_of(MapStem))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batch_norm=True, equivariant=True, width_step=ORDER[self.group])

    @property
    def unit_px(self) -> int:
        return 8


PRESETS = {base: EquivariantSettings(base, s.layers) for base, s in RESNETS.items() if not s.bottleneck}


def _read(preset: EquivariantSettings, match: re.Match[str]) -> dict[str, Any]:
    return {"group": match["group"]}


def _widen(settings: EquivariantSettings, width: int) -> EquivariantSettings:
    order = ORDER[settings.group]
    if width % order:
        raise UsageError(
            f"the width of {settings.name} must be divisible by its number of orientations",
            got=width,
            expected=f"a multiple of {order}",
        )
    return dataclasses.replace(settings, width=width)


def _build(settings: EquivariantSettings) -> Network:
    from saccade.models.nn.equivariant_resnet import EquivariantResNet

    return EquivariantResNet(settings)


CARD = BackboneCard(
    "equivariant ResNet",
    PRESETS,
    _build,
    pattern=PATTERN,
    read=_read,
    widen=_widen,
    examples=tuple(f"{base}_{group}" for base in PRESETS for group in ORDER),
    for_size=stem_for,
)
