"""Backbones by name: one function that builds what ``architectures`` describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from saccade.architectures import ResNetSettings, ViTSettings, parse, stem_for
from saccade.backbones.cnn import ResNet
from saccade.backbones.vit import ViT
from saccade.errors import UsageError, unknown

Network = ViT | ResNet
NETWORKS: dict[type, Any] = {ViTSettings: ViT, ResNetSettings: ResNet}


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
    settings = parse(name)
    given = dict(options or {})
    for key in given:
        if key not in settings.options:
            raise unknown(f"option of {name}", key, settings.options)
    if channels < 1 or size_px < 1:
        got = f"channels {channels}, size_px {size_px}"
        raise UsageError("channels and size_px are counts", got=got, expected="1 or more")
    if "stem" in settings.options:
        given["stem"] = given.get("stem") or stem_for(size_px)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        settings = dataclasses.replace(settings, channels=channels, size_px=size_px, **given)  # type: ignore[arg-type]
        return NETWORKS[type(settings)](settings)


def rebuild(network: Network, *, seed: int = 0) -> Network:
    """The same network with fresh random weights."""
    return build(**network.config(), seed=seed)  # type: ignore[arg-type]


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
