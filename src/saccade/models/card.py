"""The card of a backbone family: its names, its settings, how it is built, how others store its weights. No torch here.

A family is one file with one card. ``registry.CARDS`` lists the built-in ones; other packages add theirs by the
entry-point group ``saccade.backbones``. docs/guides/extend.md has an example.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from saccade.errors import ModelError
from saccade.models.settings import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.models.nn.network import Network

S = TypeVar("S", bound=BackboneSettings)


class Inferred(NamedTuple):
    """The network that a state dict belongs to: the arguments of ``build``."""

    name: str
    options: dict[str, object]
    size_px: int
    channels: int


@dataclass(frozen=True)
class TimmLayout(Generic[S]):
    """How timm (and with it torchvision and the official DINO files) stores the networks of a family.

    Parameters
    ----------
    infer : callable
        Takes a state dict in timm's layout. Returns the network it belongs to, None where it belongs to another family.
        Raises ModelError for a size that saccade does not build.
    model : callable
        Takes settings and the size of the input in pixels. Returns timm's name of an architecture and the arguments
        that make this network of it. Raises ModelError where timm has no counterpart.
    export_state : callable
        Takes a network and its state dict in our layout. Returns it in timm's.
    import_state : callable
        Takes a network, a state dict in timm's layout, and the number of axes its weights were made for. Returns it in
        our layout.
    fixed_size : bool
        timm builds the network for one input size.
    hf_config : callable, optional
        Takes settings. Returns the configuration of the same network in transformers; raises ModelError.
    """

    infer: Callable[[Mapping[str, Tensor]], Inferred | None]
    model: Callable[[S, int], tuple[str, dict[str, Any]]]
    export_state: Callable[[Network, dict[str, Tensor]], dict[str, Tensor]] = lambda network, state: state
    import_state: Callable[[Network, dict[str, Tensor], int], dict[str, Tensor]] = lambda network, state, axes: state
    fixed_size: bool = True
    hf_config: Callable[[S], dict[str, Any]] | None = None


@dataclass(frozen=True)
class BackboneCard(Generic[S]):
    """One family of backbones.

    Parameters
    ----------
    family : str
        Its name in messages.
    presets : mapping
        Base names, e.g. ``vit_tiny``, to settings.
    build : callable
        Takes settings, returns the network with random weights. Imports torch inside.
    pattern : re.Pattern, optional
        Grammar of the names, with the groups ``base`` (a key of ``presets``), ``head`` (all before ``_wN``), ``width``
        and ``tail`` (all after). Without it a name is a base name, with ``_wN`` where ``widen`` is given.
    read : callable, optional
        Takes the preset and the match of ``pattern``. Returns the fields that the name sets, or None where its parts
        do not belong together.
    widen : callable, optional
        Takes settings and a width. Returns the same network with this width.
    examples : tuple of str, optional
        Names to offer; any other that the grammar allows builds as well. Without it the base names.
    for_size : callable, optional
        Takes the size of the input in pixels. Returns options that depend on it, for those left open.
    timm : TimmLayout, optional
        How timm stores these networks.

    Examples
    --------
    >>> from saccade.models.backbones.vit import CARD
    >>> CARD.parse("vit_tiny_patch8_w256").width
    256
    >>> CARD.parse("resnet18") is None
    True
    """

    family: str
    presets: Mapping[str, S]
    build: Callable[[S], Network]
    pattern: re.Pattern[str] | None = None
    read: Callable[[S, re.Match[str]], dict[str, Any] | None] | None = None
    widen: Callable[[S, int], S] | None = None
    examples: tuple[str, ...] = ()
    for_size: Callable[[int], Mapping[str, object]] | None = None
    timm: TimmLayout[S] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names to offer."""
        return self.examples or tuple(self.presets)

    def match(self, name: str) -> re.Match[str] | None:
        """The parts of a name of this family, None for a name of another one."""
        pattern = self.pattern
        if pattern is None:
            bases = "|".join(map(re.escape, self.presets))
            width = r"(?:_w(?P<width>[1-9]\d*))?" if self.widen else "(?P<width>(?!))?"
            pattern = re.compile(f"(?P<head>(?P<base>{bases})){width}(?P<tail>)")
        match = pattern.fullmatch(name)
        return match if match and match["base"] in self.presets else None

    def parse(self, name: str) -> S | None:
        """The settings of a name, None where it is not of this family. Raises UsageError for an impossible width."""
        match = self.match(name)
        if match is None:
            return None
        preset = self.presets[match["base"]]
        fields = {} if self.read is None else self.read(preset, match)
        if fields is None:
            return None
        settings = dataclasses.replace(preset, name=name, **fields)
        if match["width"] is None or self.widen is None:
            return settings
        return self.widen(settings, int(match["width"]))


def unknown_size(architecture: str, got: str, names: Mapping[Any, str]) -> ModelError:
    """The error for weights of a size that the family does not have."""
    return ModelError(
        f"the weights belong to a {architecture} that saccade does not build",
        got=got,
        expected="a size of " + ", ".join(names.values()),
        hint="export its features and evaluate those",
    )


def no_counterpart(name: str, got: str) -> ModelError:
    """The error for a network that timm cannot build."""
    return ModelError(
        f"{name} has no counterpart in timm",
        got=got,
        expected="a ViT with linear stem, pre-norm and learned, sincos or no positions, a full ResNet, or a Swin",
        hint="use the safetensors file of the model folder",
    )
