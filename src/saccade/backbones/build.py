"""Backbones by name: one function that builds what ``architectures`` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from saccade.architectures import (
    EquivariantSettings,
    HVTSettings,
    ResNetSettings,
    SwinSettings,
    ViTSettings,
    configured,
)
from saccade.backbones.cnn import ResNet
from saccade.backbones.equivariant import EquivariantResNet
from saccade.backbones.hierarchical import HVT, Swin
from saccade.backbones.vit import ViT

Network = ViT | ResNet | EquivariantResNet | Swin | HVT
NETWORKS: dict[type, Any] = {
    ViTSettings: ViT,
    ResNetSettings: ResNet,
    EquivariantSettings: EquivariantResNet,
    SwinSettings: Swin,
    HVTSettings: HVT,
}


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
    options  those that the settings of the family name (see architectures): ViT: positions (learned|sincos|rotary|
             none), norm (pre|post), registers (int), layer_scale (float or None), drop_path (float), attention.
             ResNet: stem (imagenet|small|cifar, None: from size_px).
    Raises UsageError for an unknown name or option, ModelError where size and patch do not fit.
    """
    settings = configured(name, channels=channels, size_px=size_px, options=options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NETWORKS[type(settings)](settings)


def rebuild(network: Network, *, seed: int = 0) -> Network:
    """The same network with fresh random weights."""
    return build(**network.config(), seed=seed)  # type: ignore[arg-type]


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
