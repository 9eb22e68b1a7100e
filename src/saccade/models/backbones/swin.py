"""The card of Swin: swin_{micro,tiny,small,base}_patchP_windowK. No torch here; the network is ``nn/swin.py``.

``_wN`` after the patch sets the token width of the first of four stages.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.models.card import BackboneCard, Inferred, TimmLayout, unknown_size
from saccade.models.settings import BackboneSettings, Capabilities, heads_for_width, is_rate, option

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.models.nn.network import Network

PATTERN = re.compile(
    r"(?P<head>(?P<base>swin_[a-z]+)_patch(?P<patch>[1-9]\d*))(?:_w(?P<width>[1-9]\d*))?"
    r"(?P<tail>_window(?P<window>[1-9]\d*))"
)
BUFFERS = (".relative_position_index", ".attn_mask")  # in older files: they follow from the window and the image size
BIAS_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


@dataclass(frozen=True)
class SwinSettings(BackboneSettings):
    """Everything that makes one Swin: windows of ``window`` x ``window`` tokens, shifted in every second layer.

    Parameters
    ----------
    dim : int
        Token width of the first stage; it doubles with each of the next three.
    depths, heads : tuple of int
        Blocks and attention heads of each of the four stages.
    patch : int
        Side of a patch in pixels.
    window : int
        Side of a window in tokens.
    drop_path : float
        Stochastic depth of the last layer; rises linearly from 0 in the first.
    """

    dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, ...]
    patch: int = 4
    window: int = 7
    drop_path: float = option(0.0, is_rate)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(transformer=True, checkpointing=True, patch_px=self.patch, width_step=4)

    @property
    def unit_px(self) -> int:
        """Three mergings halve the map each."""
        return 8 * self.patch

    @property
    def width(self) -> int:
        return self.dim


PRESETS = {
    "swin_micro": SwinSettings("swin_micro", 48, (1, 1, 2, 1), (2, 4, 8, 16)),
    "swin_tiny": SwinSettings("swin_tiny", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": SwinSettings("swin_small", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": SwinSettings("swin_base", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def _read(preset: SwinSettings, match: re.Match[str]) -> dict[str, Any]:
    return {"patch": int(match["patch"]), "window": int(match["window"])}


def _widen(settings: SwinSettings, width: int) -> SwinSettings:
    first = heads_for_width(width, settings.dim / settings.heads[0])
    return dataclasses.replace(settings, dim=width, heads=tuple(first * 2**stage for stage in range(4)))


def _build(settings: SwinSettings) -> Network:
    from saccade.models.nn.swin import Swin

    return Swin(settings)


def _infer(state: Mapping[str, Tensor]) -> Inferred | None:
    """The size is the one that four stages tile with whole windows, as in timm's names: 224 for 7, 384 for 12."""
    if not {"patch_embed.proj.weight", BIAS_TABLE} <= state.keys():
        return None
    dim, channels, _, patch = state["patch_embed.proj.weight"].shape
    depths = tuple(len({k.split(".")[3] for k in state if k.startswith(f"layers.{n}.blocks.")}) for n in range(4))
    bases: dict[Any, str] = {(s.dim, s.depths): base for base, s in PRESETS.items()}
    if (dim, depths) not in bases:
        raise unknown_size("Swin", f"width {dim}, blocks {depths}", bases)
    window = (math.isqrt(state[BIAS_TABLE].shape[0]) + 1) // 2
    return Inferred(f"{bases[dim, depths]}_patch{patch}_window{window}", {}, 8 * patch * window, channels)


def _timm_model(settings: SwinSettings, size_px: int) -> tuple[str, dict[str, Any]]:
    return "swin_tiny_patch4_window7_224", {
        "embed_dim": settings.dim,
        "depths": list(settings.depths),
        "num_heads": list(settings.heads),
        "patch_size": settings.patch,
        "window_size": settings.window,
        "img_size": size_px,
        "in_chans": settings.channels,
    }


def _import_state(network: Network, state: dict[str, Tensor], axes: int) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(BUFFERS)}


CARD = BackboneCard(
    "Swin transformer",
    PRESETS,
    _build,
    pattern=PATTERN,
    read=_read,
    widen=_widen,
    examples=tuple(f"{base}_patch4_window7" for base in PRESETS),
    timm=TimmLayout(_infer, _timm_model, import_state=_import_state),
)
