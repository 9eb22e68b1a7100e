"""The card of the residual networks: resnet10, resnet18, resnet50. No torch here; the network is ``nn/resnet.py``.

``_wN`` sets the channels of the first stage, 64 in the paper.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.models.card import BackboneCard, Inferred, TimmLayout, no_counterpart, unknown_size
from saccade.models.settings import BackboneSettings, Capabilities, MapStem, one_of, option

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.models.nn.network import Network

PATTERN = re.compile(r"(?P<head>(?P<base>resnet\d+))(?:_w(?P<width>[1-9]\d*))?(?P<tail>)")


@dataclass(frozen=True)
class ResNetSettings(BackboneSettings):
    """Everything that makes one ResNet.

    Parameters
    ----------
    layers : tuple of int
        Blocks of each of the four stages.
    bottleneck : bool
        Bottleneck blocks instead of basic ones.
    width : int
        Channels of the first stage.
    stem : {"imagenet", "small", "cifar"}
        The first convolution; chosen by the size of the input where left open.
    """

    layers: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64
    stem: MapStem = option("imagenet", one_of(MapStem))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(axes=(2, 3), batch_norm=True, width_step=4)

    @property
    def unit_px(self) -> int:
        return 8  # any size runs; multiples of 8 keep the maps even


PRESETS = {
    "resnet10": ResNetSettings("resnet10", (1, 1, 1, 1), bottleneck=False),
    "resnet18": ResNetSettings("resnet18", (2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetSettings("resnet50", (3, 4, 6, 3), bottleneck=True),
}


def stem_for(size_px: int) -> dict[str, object]:
    """The stem that leaves a last map of about 4 x 4 to 7 x 7 at this size."""
    if size_px <= 32:
        return {"stem": "cifar"}
    return {"stem": "small" if size_px <= 64 else "imagenet"}


def _widen(settings: ResNetSettings, width: int) -> ResNetSettings:
    return dataclasses.replace(settings, width=width)


def _build(settings: ResNetSettings) -> Network:
    from saccade.models.nn.resnet import ResNet

    return ResNet(settings)


def _infer(state: Mapping[str, Tensor]) -> Inferred | None:
    if not {"conv1.weight", "layer4.0.conv1.weight"} <= state.keys() or state["conv1.weight"].shape[-1] != 7:
        return None
    layers = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    bases: dict[Any, str] = {(s.layers, s.bottleneck): base for base, s in PRESETS.items()}
    if (layers, bottleneck) not in bases:
        raise unknown_size("ResNet", f"blocks {layers}, bottleneck {bottleneck}", bases)
    width, channels = state["conv1.weight"].shape[:2]
    name = bases[layers, bottleneck] + ("" if width == 64 else f"_w{width}")
    return Inferred(name, {"stem": "imagenet"}, 224, channels)


def _timm_model(settings: ResNetSettings, size_px: int) -> tuple[str, dict[str, Any]]:
    name = "resnet50" if settings.bottleneck else "resnet18"
    return name, {"layers": list(settings.layers), "in_chans": settings.channels}


def _export_state(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from saccade.models.nn.resnet import ResNet

    assert isinstance(network, ResNet)
    s = network.settings
    if s.stem != "imagenet" or s.width != 64:
        raise no_counterpart(s.name, f"stem={s.stem}, width={s.width}")
    return state


CARD = BackboneCard(
    "ResNet",
    PRESETS,
    _build,
    pattern=PATTERN,
    widen=_widen,
    examples=tuple(name for base in PRESETS for name in (base, f"{base}_w32")),
    for_size=stem_for,
    timm=TimmLayout(_infer, _timm_model, _export_state, fixed_size=False),
)
