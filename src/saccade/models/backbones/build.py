"""Backbones by name: one function that builds what ``registry`` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from saccade.errors import UsageError
from saccade.models.nn.network import Network
from saccade.models.nn.slice_pooling import SlicePooling
from saccade.models.registry import card_of, configured


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
    """Build a network with random weights, the same for the same seed. The caller's random state is untouched.

    Parameters
    ----------
    name : str
        For example ``vit_tiny_patch8``; ``registry.names()`` lists more.
    channels : int
        Channels of the input.
    size_px : int
        Side in pixels of the images it is made for: sets the grid of learned positions, or the stem of a CNN.
    axes : int
        2 for images, 3 for volumes.
    slices : int
        Above 0: a network for images, applied to this many slices of a volume.
    options : mapping, optional
        Options of the family, see its settings: for example ``positions``, ``registers`` and ``drop_path`` of a ViT,
        ``stem`` of a ResNet.
    seed : int
        Of the random weights.

    Returns
    -------
    Network
        In training mode.

    Raises
    ------
    UsageError
        The name or an option is unknown.
    ModelError
        Size and patch do not fit.

    Examples
    --------
    >>> network = build("vit_micro_patch8", size_px=32)
    >>> network(torch.zeros(1, 3, 32, 32)).tokens.shape
    torch.Size([1, 16, 128])
    """
    if slices and axes != 3:
        raise UsageError("model.slices has no effect on images", got=f"slices={slices}", hint="it is for volumes")
    settings = configured(name, channels=channels, size_px=size_px, axes=2 if slices else axes, options=options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = card_of(name).build(settings)
        return SlicePooling(network, slices) if slices else network


def use_checkpointing(network: Network) -> None:
    """Recompute activations in the backward pass instead of storing them; UsageError where a network cannot."""
    inner = network.network if isinstance(network, SlicePooling) else network
    if not inner.capabilities.checkpointing:
        raise UsageError(
            f"train.checkpointing has no effect on {inner.name}",
            expected="a transformer",
            hint="batch norm would count every batch twice; use a smaller batch with train.accumulate",
        )
    inner.checkpointing = True


def rebuild(network: Network, *, seed: int = 0) -> Network:
    """The same network with new random weights."""
    arguments: dict[str, Any] = network.config()
    return build(**arguments, seed=seed)


def count_parameters(network: nn.Module) -> int:
    """The number of parameters.

    Examples
    --------
    >>> count_parameters(nn.Linear(2, 3))
    9
    """
    return sum(p.numel() for p in network.parameters())
