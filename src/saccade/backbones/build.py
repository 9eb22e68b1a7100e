"""Backbones by name: one dict of sizes, one function that builds.

Names follow timm: ``vit_{micro,tiny,small,base,large}_patchP`` for any P, with ``_conv`` for a convolutional
stem, and ``resnet{10,18,50}``, with ``_wN`` for N instead of 64 channels in the first stage.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import nn

from saccade.backbones.cnn import ResNet, ResNetSettings, refuse_drop_path, stem_for
from saccade.backbones.vit import ViT, ViTSettings
from saccade.errors import UsageError, unknown

Network = ViT | ResNet

# vit: width, layers, heads. micro is not in timm: a transformer that two cores train in minutes.
# resnet: blocks a stage, bottleneck or not.
BACKBONES: dict[str, ViTSettings | ResNetSettings] = {
    "vit_micro": ViTSettings("vit_micro", dim=128, depth=6, heads=4, patch=8),
    "vit_tiny": ViTSettings("vit_tiny", dim=192, depth=12, heads=3, patch=16),
    "vit_small": ViTSettings("vit_small", dim=384, depth=12, heads=6, patch=16),
    "vit_base": ViTSettings("vit_base", dim=768, depth=12, heads=12, patch=16),
    "vit_large": ViTSettings("vit_large", dim=1024, depth=24, heads=16, patch=16),
    "resnet10": ResNetSettings("resnet10", layers=(1, 1, 1, 1), bottleneck=False),
    "resnet18": ResNetSettings("resnet18", layers=(2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetSettings("resnet50", layers=(3, 4, 6, 3), bottleneck=True),
}

NAME = re.compile(
    r"(?P<vit>vit_[a-z]+)_patch(?P<patch>[1-9]\d*)(?P<conv>_conv)?|(?P<cnn>resnet\d+)(_w(?P<width>[1-9]\d*))?"
)
VIT_OPTIONS = ("positions", "norm", "registers", "layer_scale", "drop_path")
RESNET_OPTIONS = ("stem", "drop_path")


def names() -> list[str]:
    """Names worth offering; any patch size and any width build as well."""
    found = []
    for base, settings in BACKBONES.items():
        if isinstance(settings, ViTSettings):
            found += [f"{base}_patch{patch}{stem}" for patch in (8, 16) for stem in ("", "_conv")]
        else:
            found += [base, f"{base}_w32"]
    return found


def parse(name: str) -> ViTSettings | ResNetSettings:
    """Settings of a name, other options at their defaults; UsageError with a suggestion if unknown."""
    match = NAME.fullmatch(name)
    base = match and (match["vit"] or match["cnn"])
    if match is None or base not in BACKBONES:
        raise unknown("backbone", name, names())
    settings = BACKBONES[base]
    if isinstance(settings, ViTSettings):
        return dataclasses.replace(
            settings, name=name, patch=int(match["patch"]), stem="conv" if match["conv"] else "linear"
        )
    return dataclasses.replace(settings, name=name, width=int(match["width"] or settings.width))


def build(
    name: str,
    *,
    channels: int = 3,
    size_px: int = 224,
    options: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Network:
    """A network with random weights, the same for the same seed; the caller's random state is untouched.

    size_px  side of the images it is made for: sets the grid of learned positions, or the stem of a CNN
    options  ViT: positions (learned|sincos|rotary|none), norm (pre|post), registers (int), layer_scale
             (float or None), drop_path (float). ResNet: stem (imagenet|small|cifar, None: from size_px).
    Raises UsageError for an unknown name or option, ModelError where size and patch do not fit.
    """
    settings = parse(name)
    given = dict(options or {})
    known = VIT_OPTIONS if isinstance(settings, ViTSettings) else RESNET_OPTIONS
    for key in given:
        if key not in known:
            raise unknown(f"option of {name}", key, known)
    if channels < 1 or size_px < 1:
        got = f"channels {channels}, size_px {size_px}"
        raise UsageError("channels and size_px are counts", got=got, expected="1 or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(settings, ViTSettings):
            vit = dataclasses.replace(settings, channels=channels, size_px=size_px, **given)  # type: ignore[arg-type]
            return ViT(vit)
        refuse_drop_path(name, given.pop("drop_path", None))
        stem = given.get("stem") or stem_for(size_px)
        return ResNet(
            dataclasses.replace(settings, channels=channels, size_px=size_px, stem=stem)  # type: ignore[arg-type]
        )


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def describe(name: str) -> str:
    """One line for a person: kind, size, parameters (for three channels and the default size)."""
    settings = parse(name)
    if isinstance(settings, ResNetSettings):
        kind = f"residual network, {sum(settings.layers)} blocks, first stage {settings.width} channels"
        size_px = settings.size_px
    else:
        stem = "convolutional stem" if settings.stem == "conv" else "linear patches"
        kind = f"transformer, {settings.depth} layers, width {settings.dim}, {settings.heads} heads, "
        kind += f"{stem} of {settings.patch} px"
        size_px = max(1, settings.size_px // settings.patch) * settings.patch
    with torch.device("meta"):
        count = count_parameters(build(name, size_px=size_px))
    return f"{name}: {kind}, {count / 1e6:.1f} M parameters"
