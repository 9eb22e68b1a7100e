"""Backbones by name: one function that builds what ``architectures`` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from saccade.errors import UsageError
from saccade.models.backbones.equivariant import EquivariantResNet
from saccade.models.backbones.resnet import ResNet
from saccade.models.backbones.slice_pooling import Sliced
from saccade.models.backbones.swin_hvt import HVT, Swin
from saccade.models.backbones.vit import ViT
from saccade.models.registry import configured
from saccade.models.settings import EquivariantSettings, HVTSettings, ResNetSettings, SwinSettings, ViTSettings

Network = ViT | ResNet | EquivariantResNet | Swin | HVT | Sliced
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
    axes: int = 2,
    slices: int = 0,
    options: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Network:
    """A network with random weights, the same for the same seed; the caller's random state is untouched.

    size_px  side of the images it is made for: sets the grid of learned positions, or the stem of a CNN
    axes     2 for images, 3 for volumes; slices: above 0, a network for images that is shown so many of a volume
    options  those that the settings of the family name (see blueprints): ViT: positions (learned|factorised|
             sincos|rotary|none), norm (pre|post), registers (int), layer_scale (float or None), drop_path (float),
             attention. ResNet: stem (imagenet|small|cifar, None: from size_px).
    Raises UsageError for an unknown name or option, ModelError where size and patch do not fit.
    """
    if slices and axes != 3:
        raise UsageError("slices are taken from volumes", got="images", hint="leave out model.slices")
    settings = configured(name, channels=channels, size_px=size_px, axes=2 if slices else axes, options=options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network: Network = NETWORKS[type(settings)](settings)
        return Sliced(network, slices) if slices else network


def use_checkpointing(network: Network) -> None:
    """Keep one tensor a block for the gradients and compute the rest again; UsageError where a network cannot."""
    inner = network.network if isinstance(network, Sliced) else network
    if not isinstance(inner, ViT | HVT | Swin):
        raise UsageError(
            f"train.checkpointing has no effect on {inner.name}",
            expected="a transformer",
            hint="the batch norm of a CNN would count every batch twice; a smaller batch with train.accumulate",
        )
    inner.checkpointing = True


def rebuild(network: Network, *, seed: int = 0) -> Network:
    """The same network with fresh random weights."""
    return build(**network.config(), seed=seed)  # type: ignore[arg-type]


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
