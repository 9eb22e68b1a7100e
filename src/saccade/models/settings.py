"""What the settings of all backbone families have in common: input, options, capabilities. No torch here.

The settings of one family are a frozen dataclass in the family's own file (``backbones/vit.py`` and others). They hold
everything that makes one network, in numbers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from saccade.errors import UsageError, unknown
from saccade.models.attention_patterns import parse_pattern

PatchStem = Literal["linear", "conv", "stages", "grid"]
"""linear: one matrix times each patch; conv: a few convolutions; stages: residual stages, which makes it a hybrid;
grid: the input is a grid of feature vectors, times one matrix, and its last channel marks the cells that hold one."""
MapStem = Literal["imagenet", "small", "cifar"]
"""imagenet: 7x7 stride 2 and a pool (stride 4); small: 3x3 stride 2; cifar: 3x3 stride 1."""
Positions = Literal["learned", "factorised", "sincos", "rotary", "conv", "none"]
"""learned: one vector for each cell of the grid; factorised: one for each index of each axis, summed;
conv: a depthwise convolution over the tokens, for grids of feature vectors only."""
Norm = Literal["pre", "post"]
Pool = Literal["cls", "mean"]
"""The image's vector of a ViT: its class token, or the mean of its patches."""
Group = Literal["c4", "d4", "c8"]
ORDER: dict[str, int] = {"c4": 4, "d4": 8, "c8": 8}
"""Number of elements of each symmetry group."""

Check = Callable[[str, Any], None]
"""Takes the name and the value of an option; raises UsageError for a value that it cannot take."""


@dataclass(frozen=True)
class Capabilities:
    """What a network can do, and which inputs it takes. Other rooms ask these instead of the family.

    Parameters
    ----------
    transformer : bool
        Uses the optimiser settings of transformers; inputs must be multiples of ``unit_px``.
    has_attention : bool
        The network is an ``AttentiveNetwork``: attention rows and rollout on request.
    has_tokens : bool
        ``Features.tokens`` lie on a grid over the image, so that they can be compared place by place.
    has_positions : bool
        Position embeddings can be removed (``without_positions``).
    axes : tuple of int
        Number of spatial axes it can be built for: 2 for images, 3 for volumes.
    maskable : bool
        Patches can be left out (``keep``) or replaced (``hidden``) in the forward pass.
    batch_norm : bool
        Contains batch normalisation, so that the result of a training step depends on the batch.
    checkpointing : bool
        Recomputes activations in the backward pass where its attribute ``checkpointing`` is True.
    reads_grids : bool
        The input is a grid of feature vectors instead of pixels.
    equivariant : bool
        Equivariant to rotations by construction.
    patch_px : int
        Side of a patch in pixels, the field ``patch`` of the settings; 0: the network has no patches.
    any_patch : bool
        ``patch`` may be any divisor of the input size; False: a power of two.
    width_step : int
        Widths worth trying are multiples of this.
    """

    transformer: bool = False
    has_attention: bool = False
    has_tokens: bool = True
    has_positions: bool = False
    axes: tuple[int, ...] = (2,)
    maskable: bool = False
    batch_norm: bool = False
    checkpointing: bool = False
    reads_grids: bool = False
    equivariant: bool = False
    patch_px: int = 0
    any_patch: bool = False
    width_step: int = 8


def option(default: Any, check: Check) -> Any:
    """A dataclass field that users can set as ``model.NAME``, with the check of its value."""
    return dataclasses.field(default=default, kw_only=True, metadata={"check": check})


def one_of(choices: Any) -> Check:
    """The check for a Literal type."""

    def check(name: str, value: Any) -> None:
        if value not in get_args(choices):
            raise unknown(name, str(value), get_args(choices))

    return check


def is_pattern(name: str, value: Any) -> None:
    parse_pattern(value)


def is_count(name: str, value: Any) -> None:
    if value < 0:
        raise UsageError(f"{name} is out of range", got=value, expected="0 or more")


def is_rate(name: str, value: Any) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} is out of range", got=value, expected=f"0 <= {name} < 1")


def any_value(name: str, value: Any) -> None:
    """For options that the type alone describes."""


@dataclass(frozen=True)
class BackboneSettings(ABC):
    """Everything that makes one network; a subclass for each family adds its own numbers.

    Parameters
    ----------
    name : str
        The name that builds the same network again, e.g. ``vit_tiny_patch8``.
    channels : int
        Channels of the input.
    size_px : int
        Side in pixels of the images it is made for; sets the grid of learned positions, or the stem of a CNN.
    axes : int
        2 for images, 3 for volumes.

    Raises
    ------
    UsageError
        An option has a value that it cannot take.
    """

    name: str
    _: KW_ONLY
    channels: int = 3
    size_px: int = 224
    axes: int = 2

    def __post_init__(self) -> None:
        for field in _options(self):
            field.metadata["check"](field.name, getattr(self, field.name))

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @property
    @abstractmethod
    def unit_px(self) -> int:
        """Sides of images and crops are multiples of this, in pixels."""

    @property
    @abstractmethod
    def width(self) -> int:
        """What ``_wN`` in a name sets: the token width of a transformer, the channels of the first stage of a CNN."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the fields that users can set."""
        return tuple(field.name for field in _options(self))


def _options(settings: BackboneSettings) -> Iterable[dataclasses.Field[Any]]:
    return (field for field in dataclasses.fields(settings) if "check" in field.metadata)


def build_arguments(settings: BackboneSettings) -> dict[str, object]:
    """The arguments of ``backbones.build.build`` that make this network again, ready for JSON."""
    options = {name: getattr(settings, name) for name in settings.options}
    made_for = {"channels": settings.channels, "size_px": settings.size_px, "axes": settings.axes}
    return {"name": settings.name, **made_for, "options": options}


def heads_for_width(width: int, head_width: float) -> int:
    """The number of heads that divides ``width`` and keeps the width of a head closest to ``head_width``.

    Heads of even width are preferred: rotary positions rotate pairs of channels.
    """
    divisors = [n for n in range(1, width + 1) if width % n == 0 and (width // n % 2 == 0 or width % 2)]
    return min(divisors, key=lambda n: abs(width / n - head_width))
