"""What a network costs: parameters and floating-point operations, read from the network itself (see ``recorder``).

Operations are those of one more image in a batch: two for every multiply-add of a matrix product or a convolution,
padding included. Not counted is what a batch needs once, whatever its size (rotating the kernels of group convolutions,
resizing position embeddings), and operations other than products: norms, activations, sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from saccade.base.contracts import Features
from saccade.cost.recorder import Recorder
from saccade.errors import UsageError
from saccade.models.nn.network import Network
from saccade.models.nn.slice_pooling import SlicePooling
from saccade.models.registry import card_of, configured, with_width
from saccade.models.settings import BackboneSettings

By = Literal["params", "flops"]
WIDEST = 8192


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Parameters
    ----------
    parameters : int
        Of the network.
    flops : int
        Floating-point operations of the forward pass of one image.
    tokens : int
        Vectors that the network returns for one image.
    dim : int
        Width of each.
    """

    parameters: int
    flops: int
    tokens: int
    dim: int


def build_network(settings: BackboneSettings, slices: int = 0) -> Network:
    """The network of these settings."""
    network: Network = card_of(settings.name).build(settings)
    return SlicePooling(network, slices) if slices else network


def without_values(make: Callable[[], nn.Module], device: torch.device) -> tuple[Recorder, Any]:
    """A module whose parameters have no values, and the recorder to run it under."""
    recorder = Recorder()
    with torch.random.fork_rng(devices=[]), recorder.recording():
        module = make()
    recorder.adopt(module, device)
    return recorder, module


def cost(
    name: str,
    *,
    size_px: int,
    channels: int = 3,
    axes: int = 2,
    slices: int = 0,
    options: Mapping[str, object] | None = None,
) -> Cost:
    """What the network of this name costs at this size.

    Parameters
    ----------
    name, size_px, channels, axes, slices, options
        See ``models.backbones.build.build``.

    Raises
    ------
    UsageError
        The name or an option is unknown.
    ModelError
        The size does not fit.

    Examples
    --------
    >>> cost("resnet18", size_px=224).flops
    3627122688
    """
    settings = configured(name, channels=channels, size_px=size_px, axes=2 if slices else axes, options=options)
    return cost_of(settings, slices)


@functools.lru_cache(maxsize=512)
def cost_of(settings: BackboneSettings, slices: int = 0) -> Cost:
    """What a network with these settings costs, at the size they are made for. Raises ModelError as ``cost``."""
    cpu = torch.device("cpu")
    recorder, network = without_values(lambda: build_network(settings, slices).eval(), cpu)
    flops, axes = [], 3 if slices else settings.axes
    # As many slices as are looked at: each is computed once.
    size = (settings.size_px,) * axes if not slices else (max(slices, settings.size_px), *(settings.size_px,) * 2)
    for images in (1, 2):
        recorder.flops.clear()
        with recorder.recording(), torch.no_grad():
            pixels = recorder.empty((images, settings.channels, *size), dtype=torch.float32, device=cpu)
            features: Features = network(pixels)
        flops.append(recorder.flops.total())
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, flops[1] - flops[0], features.tokens.shape[1], network.dim)


def matched(name: str, target: int, by: By, *, size_px: int, channels: int = 3) -> str:
    """The network of this name with the width, as ``_wN``, whose parameters or operations are nearest to ``target``.

    Only the width changes; a width in the name is replaced.

    Raises
    ------
    UsageError
        The target is beyond every width.
    ModelError
        The size does not fit.
    """
    widths = list(_widths(configured(name, channels=channels, size_px=size_px)))

    def figure(index: int) -> int:
        network = cost(with_width(name, widths[index]), size_px=size_px, channels=channels)
        return network.parameters if by == "params" else network.flops

    low, high = 0, len(widths) - 1
    if figure(high) < target:
        most = f"at most {figure(high):,}"
        raise UsageError(f"no width of {name} costs that much", got=f"{target:,} {by}", expected=most)
    while high - low > 1:  # both figures grow with the width
        middle = (low + high) // 2
        low, high = (middle, high) if figure(middle) <= target else (low, middle)
    return with_width(name, widths[min((low, high), key=lambda index: abs(figure(index) - target))])


def _widths(settings: BackboneSettings) -> Iterator[int]:
    """Widths worth trying, in steps of about a thirtieth of the width, so that a cost is met within some per cent.

    Steps are powers of two times a unit, because such matrix products run fast. The orientations of a group divide a
    width: their number is its unit.
    """
    unit = settings.capabilities.width_step
    width = step = unit
    while width <= WIDEST:
        yield width
        step = 2 * step if width >= 32 * step else step
        width += step
