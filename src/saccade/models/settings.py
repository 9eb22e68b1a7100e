"""Everything that makes one network, in numbers, family by family; what builds it and what prices it read the same.

What a name stands for is in ``architectures``. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from saccade.errors import UsageError, unknown
from saccade.models.attention_patterns import parse_pattern

PatchStem = Literal["linear", "conv", "stages", "grid"]
"""linear: patches times one matrix; conv: a few convolutions; stages: residual stages, which makes it a hybrid;
grid: the pixels are vectors of tiles, times one matrix, and the last channel says which tiles are there."""
MapStem = Literal["imagenet", "small", "cifar"]
"""imagenet: 7x7 stride 2 and a pool (stride 4); small: 3x3 stride 2; cifar: 3x3 stride 1."""
Positions = Literal["learned", "factorised", "sincos", "rotary", "conv", "none"]
"""learned: one vector a place of the grid; factorised: one a place of every axis, summed;
conv: told by the neighbours, grids of vectors only."""
Norm = Literal["pre", "post"]
Pool = Literal["cls", "mean"]
"""What a ViT gives as the image's vector: its class token, or the mean of its patches."""
Group = Literal["c4", "d4", "c8"]
ORDER: dict[str, int] = {"c4": 4, "d4": 8, "c8": 8}
WORDS = {
    "positions": get_args(Positions),
    "norm": get_args(Norm),
    "stem": get_args(MapStem),
    "pool": get_args(Pool),
}


class Checked:
    """Settings whose ``options`` are looked at when they are made: UsageError for a value that none of them takes."""

    options: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for name in self.options:
            value = getattr(self, name)
            if name in WORDS and value not in WORDS[name]:
                raise unknown(name, str(value), WORDS[name])
            if name == "attention":
                parse_pattern(value)
            if name == "registers" and value < 0:
                raise UsageError("registers is out of range", got=value, expected="0 or more")
            if name == "drop_path" and not 0 <= value < 1:
                raise UsageError("drop_path is out of range", got=value, expected="0 <= drop_path < 1")


@dataclass(frozen=True)
class ViTSettings(Checked):
    """Everything that makes one ViT. ``size_px`` is the side the learned positions are made for.

    attention    full | window:K | neighbourhood:K | axial | strided:K, see nn/local
    layer_scale  start value of LayerScale, None to leave it out
    drop_path    stochastic depth of the last layer; the first has 0, those between rise evenly
    """

    options: ClassVar[tuple[str, ...]] = (
        "positions",
        "norm",
        "registers",
        "layer_scale",
        "drop_path",
        "attention",
        "pool",
    )
    transformer: ClassVar[bool] = True

    name: str
    dim: int
    depth: int
    heads: int
    patch: int = 16
    channels: int = 3
    size_px: int = 224
    axes: int = 2
    stem: PatchStem = "linear"
    positions: Positions = "learned"
    norm: Norm = "pre"
    registers: int = 0
    layer_scale: float | None = None
    drop_path: float = 0.0
    attention: str = "full"
    pool: Pool = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem != "grid":
            if self.positions == "conv":
                raise UsageError(
                    f"positions=conv is for grids of vectors, and {self.name} reads pixels",
                    hint="for images the stems conv and stages do the same: vit_tiny_patch8_conv",
                )
            return
        if self.positions == "learned":
            raise UsageError(
                f"positions of {self.name} cannot be learned",
                expected="conv, sincos, rotary or none",
                hint="grids have any number of tiles, and a learned table would be stretched over each",
            )
        if self.attention != "full":
            raise UsageError(f"{self.name} leaves out tiles that are not there", got=self.attention, expected="full")

    @property
    def maskable(self) -> bool:
        """Whether patches can be left out: none has seen another before the first block, and all see all after."""
        return self.stem in ("linear", "grid") and self.attention == "full"

    @property
    def width(self) -> int:
        return self.dim

    @property
    def batch_norm(self) -> bool:
        return self.stem == "stages"

    @property
    def unit_px(self) -> int:
        """Sides of images and crops are multiples of this."""
        return self.patch


@dataclass(frozen=True)
class ResNetSettings(Checked):
    """Everything that makes one ResNet. ``width``: channels of the first stage, 64 in the paper."""

    options: ClassVar[tuple[str, ...]] = ("stem",)
    transformer: ClassVar[bool] = False
    maskable: ClassVar[bool] = False
    batch_norm: ClassVar[bool] = True
    unit_px: ClassVar[int] = 8  # any size runs; multiples of 8 keep the maps even

    name: str
    layers: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64
    channels: int = 3
    size_px: int = 224
    axes: int = 2
    stem: MapStem = "imagenet"


@dataclass(frozen=True)
class EquivariantSettings(Checked):
    """A ResNet of basic blocks whose channels are fields over a group. ``width``: fields times orientations."""

    options: ClassVar[tuple[str, ...]] = ("stem",)
    transformer: ClassVar[bool] = False
    maskable: ClassVar[bool] = False
    batch_norm: ClassVar[bool] = True
    unit_px: ClassVar[int] = 8
    axes: ClassVar[int] = 2

    name: str
    layers: tuple[int, int, int, int]
    group: Group = "c4"
    width: int = 64
    channels: int = 3
    size_px: int = 224
    stem: MapStem = "imagenet"


@dataclass(frozen=True)
class SwinSettings(Checked):
    """Swin: windows of ``window`` x ``window`` tokens, shifted in every second layer; ``dim``: of the first stage."""

    options: ClassVar[tuple[str, ...]] = ("drop_path",)
    transformer: ClassVar[bool] = True
    maskable: ClassVar[bool] = False
    batch_norm: ClassVar[bool] = False
    axes: ClassVar[int] = 2

    name: str
    dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    patch: int = 4
    window: int = 7
    channels: int = 3
    size_px: int = 224
    drop_path: float = 0.0

    @property
    def width(self) -> int:
        return self.dim

    @property
    def unit_px(self) -> int:
        """Three mergings halve the map each."""
        return 8 * self.patch


@dataclass(frozen=True)
class HVTSettings(Checked):
    """A ViT that halves the sides of its map by max pooling, before the blocks named in ``pools``."""

    options: ClassVar[tuple[str, ...]] = ("drop_path",)
    transformer: ClassVar[bool] = True
    maskable: ClassVar[bool] = False
    batch_norm: ClassVar[bool] = False

    name: str
    dim: int
    depth: int
    heads: int
    pools: tuple[int, ...]
    patch: int = 16
    channels: int = 3
    size_px: int = 224
    axes: int = 2
    drop_path: float = 0.0

    @property
    def width(self) -> int:
        return self.dim

    @property
    def unit_px(self) -> int:
        return self.patch


Settings = ViTSettings | ResNetSettings | EquivariantSettings | SwinSettings | HVTSettings


def arguments(settings: Settings) -> dict[str, object]:
    """What ``backbones.build.build`` needs to make this network again."""
    options = {name: getattr(settings, name) for name in settings.options}
    made_for = {"channels": settings.channels, "size_px": settings.size_px, "axes": settings.axes}
    return {"name": settings.name, **made_for, "options": options}


def is_grid(settings: Settings) -> bool:
    """Whether a network reads vectors of tiles instead of pixels."""
    return isinstance(settings, ViTSettings) and settings.stem == "grid"
