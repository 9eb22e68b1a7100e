"""The card of the vision transformers: vit, hybrid and grid. No torch here; the network is ``nn/vit.py``.

    vit_{micro,tiny,small,base,large}_patchP    _conv: convolutional stem; _window7, _neighbourhood7, _axial, _strided8
    hybrid_{micro,tiny,small}_patchP            convolutional stages down to P pixels, then a transformer
    grid_{nano,micro,tiny}                      the input is a grid of feature vectors (see data/feature_grids)

``_wN`` after the patch sets the token width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.errors import ModelError, UsageError
from saccade.models.attention_patterns import WITH_REACH
from saccade.models.card import BackboneCard, Inferred, TimmLayout, unknown_size
from saccade.models.settings import (
    BackboneSettings,
    Capabilities,
    Norm,
    PatchStem,
    Pool,
    Positions,
    any_value,
    heads_for_width,
    is_count,
    is_pattern,
    is_rate,
    one_of,
    option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.models.nn.network import Network

PATTERN = re.compile(
    r"(?P<head>(?P<base>(?:vit|hybrid|grid)_[a-z]+)(?:_patch(?P<patch>[1-9]\d*))?)(?:_w(?P<width>[1-9]\d*))?"
    r"(?P<tail>(?P<conv>_conv)?(?:_(?P<kind>window|neighbourhood|axial|strided)(?P<reach>[1-9]\d*)?)?)"
)


@dataclass(frozen=True)
class ViTSettings(BackboneSettings):
    """Everything that makes one ViT.

    Parameters
    ----------
    dim, depth, heads : int
        Token width, layers, and attention heads of each.
    patch : int
        Side of a patch in pixels.
    stem : {"linear", "conv", "stages", "grid"}
        How patches become tokens.
    positions : {"learned", "factorised", "sincos", "rotary", "conv", "none"}
        Position embeddings.
    norm : {"pre", "post"}
        Norm before or after attention and MLP.
    registers : int
        Register tokens (Darcet et al. 2024).
    layer_scale : float, optional
        Initial value of LayerScale; None: no LayerScale.
    drop_path : float
        Stochastic depth of the last layer; rises linearly from 0 in the first.
    attention : str
        full, window:K, neighbourhood:K, axial or strided:K, see ``attention_patterns``.
    pool : {"cls", "mean"}
        The image's vector: the class token, or the mean of the patch tokens.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 16
    stem: PatchStem = "linear"
    positions: Positions = option("learned", one_of(Positions))
    norm: Norm = option("pre", one_of(Norm))
    registers: int = option(0, is_count)
    layer_scale: float | None = option(None, any_value)
    drop_path: float = option(0.0, is_rate)
    attention: str = option("full", is_pattern)
    pool: Pool = option("cls", one_of(Pool))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem != "grid":
            if self.positions == "conv":
                raise UsageError(
                    f"positions=conv is for grids of feature vectors, and {self.name} reads pixels",
                    hint="for images the stems conv and stages do the same: vit_tiny_patch8_conv",
                )
            return
        if self.positions == "learned":
            raise UsageError(
                f"{self.name} does not support learned positions",
                got="positions=learned",
                expected="conv, sincos, rotary or none",
                hint="grids differ in size, and a learned table would be resized for each",
            )
        if self.attention != "full":
            raise UsageError(
                f"{self.name} masks empty cells, which needs full attention", got=self.attention, expected="full"
            )

    @property
    def capabilities(self) -> Capabilities:
        grid = self.stem == "grid"
        return Capabilities(
            transformer=True,
            has_attention=True,
            has_positions=self.positions != "none",
            axes=(2,) if grid else (2, 3),
            # The tokens of a convolutional stem contain parts of their neighbours before the first block.
            maskable=self.stem in ("linear", "grid") and self.attention == "full",
            batch_norm=self.stem == "stages",
            checkpointing=True,
            reads_grids=grid,
            patch_px=self.patch,
            any_patch=self.stem == "linear",
        )

    @property
    def unit_px(self) -> int:
        return self.patch

    @property
    def width(self) -> int:
        return self.dim


def _presets() -> dict[str, ViTSettings]:
    # micro is not in timm: transformers that two cores train in minutes.
    vits = {"micro": (128, 6, 4), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
    vits["large"] = (1024, 24, 16)
    hybrids = {"micro": (128, 4, 4), "tiny": (192, 8, 3), "small": (384, 8, 6)}
    # grid_tiny is the second level of Chen et al. 2022 (HIPT), except for the positions: docs/concepts/hierarchy.md.
    grids = {"nano": (64, 2, 4), "micro": (128, 4, 4), "tiny": (192, 6, 6)}
    presets = {f"vit_{size}": ViTSettings(f"vit_{size}", *numbers) for size, numbers in vits.items()}
    for size, numbers in hybrids.items():
        presets[f"hybrid_{size}"] = ViTSettings(f"hybrid_{size}", *numbers, stem="stages")
    for size, numbers in grids.items():
        presets[f"grid_{size}"] = ViTSettings(f"grid_{size}", *numbers, patch=1, stem="grid", positions="conv")
    return presets


PRESETS = _presets()


def _read(preset: ViTSettings, match: re.Match[str]) -> dict[str, Any] | None:
    """The fields that a name sets; None where its parts do not belong together."""
    patch, conv, kind, reach = match["patch"], match["conv"], match["kind"], match["reach"]
    if preset.stem == "grid":
        return None if patch or conv or kind else {}
    if not patch or (conv and preset.stem != "linear") or (kind and WITH_REACH[kind] != bool(reach)):
        return None
    fields: dict[str, Any] = {"patch": int(patch)}
    if conv:
        fields["stem"] = "conv"
    if kind:
        fields["attention"] = kind + (f":{reach}" if reach else "")
    return fields


def _widen(settings: ViTSettings, width: int) -> ViTSettings:
    heads = heads_for_width(width, settings.dim / settings.heads)
    return dataclasses.replace(settings, dim=width, heads=heads)


def _examples() -> tuple[str, ...]:
    examples = []
    for base, preset in PRESETS.items():
        if preset.stem == "grid":
            examples.append(base)
            continue
        variants = ("", "_conv", "_window7") if preset.stem == "linear" else ("",)
        examples += [f"{base}_patch{patch}{variant}" for patch in (8, 16) for variant in variants]
    return tuple(examples)


def _build(settings: ViTSettings) -> Network:
    from saccade.models.nn.vit import ViT

    return ViT(settings)


# --- weights of others --------------------------------------------------------------------------


def _infer(state: Mapping[str, Tensor]) -> Inferred | None:
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= state.keys():
        return None
    dim, channels, _, patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=0)
    bases = {(s.dim, s.depth): base for base, s in PRESETS.items() if s.stem == "linear"}
    if (dim, depth) not in bases:
        raise unknown_size("ViT", f"width {dim}, {depth} layers", bases)
    registers = next((state[key].shape[1] for key in ("reg_token", "register_tokens") if key in state), 0)
    layer_scale = 1e-5 if "blocks.0.ls1.gamma" in state else None
    side = math.isqrt(state["pos_embed"].shape[1])
    options: dict[str, object] = {"registers": registers, "layer_scale": layer_scale}
    return Inferred(f"{bases[dim, depth]}_patch{patch}", options, side * patch, channels)


def _check_plain(settings: ViTSettings, program: str) -> None:
    """Raise ModelError for what the plain ViT of other programs does not have, though its weights would load."""
    for name, plain in (("attention", "full"), ("pool", "cls")):
        value = getattr(settings, name)
        if value != plain:
            raise ModelError(
                f"{settings.name} has no counterpart in {program}",
                got=f"{name}={value}",
                expected=f"{name}={plain}",
                hint="--to safetensors supports every network",
            )


def _timm_model(settings: ViTSettings, size_px: int) -> tuple[str, dict[str, Any]]:
    _check_plain(settings, "timm")
    return "vit_small_patch16_224", {
        "img_size": settings.size_px,
        "patch_size": settings.patch,
        "in_chans": settings.channels,
        "embed_dim": settings.dim,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "init_values": settings.layer_scale,
        "reg_tokens": settings.registers,
        "no_embed_class": settings.registers > 0,
    }


def _hf_config(settings: ViTSettings) -> dict[str, Any]:
    if settings.registers or settings.layer_scale is not None:
        raise ModelError(
            f"{settings.name} has no counterpart in transformers",
            got=f"registers={settings.registers}, layer_scale={settings.layer_scale}",
            expected="a plain ViT, which is its ViTModel",
            hint="--to timm supports registers, LayerScale, ResNets and Swins",
        )
    _check_plain(settings, "transformers")
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": settings.dim,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        "intermediate_size": 4 * settings.dim,
        "image_size": settings.size_px,
        "patch_size": settings.patch,
        "num_channels": settings.channels,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
    }


def _export_state(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from saccade.models.backbones.vit_weights import to_timm

    return to_timm(network, state)


def _import_state(network: Network, state: dict[str, Tensor], axes: int) -> dict[str, Tensor]:
    from saccade.models.backbones.vit_weights import from_timm

    return from_timm(network, state, axes)


CARD = BackboneCard(
    "vision transformer",
    PRESETS,
    _build,
    pattern=PATTERN,
    read=_read,
    widen=_widen,
    examples=_examples(),
    timm=TimmLayout(_infer, _timm_model, _export_state, _import_state, hf_config=_hf_config),
)
