"""Networks by name: what a name means in numbers, without building anything. No torch here.

Names follow timm. ``_wN`` sets the width of any of them: the token width of a transformer, the channels of the first
stage of a CNN (over all orientations, where it has them).

    vit_{micro,tiny,small,base,large}_patchP    _conv: convolutional stem; _window7, _neighbourhood7, _axial, _strided8
    resnet{10,18,50}, resnet{10,18}_{c4,d4,c8}  plain, and equivariant to 4 turns, to turns and flips, to 8 turns
    hybrid_{micro,tiny,small}_patchP            convolutional stages down to P pixels, a transformer after
    swin_{micro,tiny,small,base}_patchP_windowK shifted windows, four stages
    hvt_{micro,tiny,small}_patchP               a transformer that pools its tokens
    grid_{nano,micro,tiny}                      a ViT whose patches are vectors of another network (see data/grids)

The same names build networks for volumes (``axes`` 3, taken from the data like ``channels``), with cubes for patches
and kernels; swin and the equivariant ResNets are for images only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from saccade.errors import UsageError, unknown
from saccade.sparsity import parse_pattern

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


def stem_for(size_px: int) -> MapStem:
    """The stem that leaves a last map of about 4 x 4 to 7 x 7 at this size."""
    if size_px <= 32:
        return "cifar"
    return "small" if size_px <= 64 else "imagenet"


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


# micro is not in timm: transformers that two cores train in minutes.
ARCHITECTURES: dict[str, Settings] = {
    "vit_micro": ViTSettings("vit_micro", dim=128, depth=6, heads=4),
    "vit_tiny": ViTSettings("vit_tiny", dim=192, depth=12, heads=3),
    "vit_small": ViTSettings("vit_small", dim=384, depth=12, heads=6),
    "vit_base": ViTSettings("vit_base", dim=768, depth=12, heads=12),
    "vit_large": ViTSettings("vit_large", dim=1024, depth=24, heads=16),
    "resnet10": ResNetSettings("resnet10", layers=(1, 1, 1, 1), bottleneck=False),
    "resnet18": ResNetSettings("resnet18", layers=(2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetSettings("resnet50", layers=(3, 4, 6, 3), bottleneck=True),
    "hybrid_micro": ViTSettings("hybrid_micro", dim=128, depth=4, heads=4, stem="stages"),
    "hybrid_tiny": ViTSettings("hybrid_tiny", dim=192, depth=8, heads=3, stem="stages"),
    "hybrid_small": ViTSettings("hybrid_small", dim=384, depth=8, heads=6, stem="stages"),
    "swin_micro": SwinSettings("swin_micro", dim=48, depths=(1, 1, 2, 1), heads=(2, 4, 8, 16)),
    "swin_tiny": SwinSettings("swin_tiny", dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swin_small": SwinSettings("swin_small", dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "swin_base": SwinSettings("swin_base", dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "hvt_micro": HVTSettings("hvt_micro", dim=128, depth=6, heads=4, pools=(2, 4)),
    "hvt_tiny": HVTSettings("hvt_tiny", dim=192, depth=12, heads=3, pools=(4, 8)),
    "hvt_small": HVTSettings("hvt_small", dim=384, depth=12, heads=6, pools=(4, 8)),
    "grid_nano": ViTSettings("grid_nano", dim=64, depth=2, heads=4, patch=1, stem="grid", positions="conv"),
    "grid_micro": ViTSettings("grid_micro", dim=128, depth=4, heads=4, patch=1, stem="grid", positions="conv"),
    # The second level of Chen et al. 2022 (HIPT), but for the positions: see docs/concepts/hierarchy.md.
    "grid_tiny": ViTSettings("grid_tiny", dim=192, depth=6, heads=6, patch=1, stem="grid", positions="conv"),
}

NAME = re.compile(
    r"(?P<base>(?:vit|hybrid|swin|hvt|grid)_[a-z]+|resnet\d+)"
    r"(?:_(?P<group>c4|d4|c8))?(?:_patch(?P<patch>[1-9]\d*))?"
    r"(?:_w(?P<width>[1-9]\d*))?(?P<conv>_conv)?"
    r"(?:_(?P<kind>window|neighbourhood|axial|strided)(?P<reach>[1-9]\d*)?)?"
)
WITHOUT_PATCH = (ResNetSettings, EquivariantSettings)


def names() -> list[str]:
    """Names worth offering; any patch size, window and width build as well."""
    found = []
    for base, settings in ARCHITECTURES.items():
        if isinstance(settings, ViTSettings) and settings.stem == "linear":
            found += [f"{base}_patch{patch}{stem}" for patch in (8, 16) for stem in ("", "_conv", "_window7")]
        elif isinstance(settings, ResNetSettings):
            groups = [] if settings.bottleneck else [f"{base}_{group}" for group in ORDER]
            found += [base, f"{base}_w32", *groups]
        elif isinstance(settings, SwinSettings):
            found.append(f"{base}_patch4_window7")
        elif is_grid(settings):
            found.append(base)
        else:
            found += [f"{base}_patch{patch}" for patch in (8, 16)]
    return found


def is_grid(settings: Settings) -> bool:
    """Whether a network reads vectors of tiles instead of pixels."""
    return isinstance(settings, ViTSettings) and settings.stem == "grid"


def parse(name: str) -> Settings:
    """Settings of a name, other options at their defaults; UsageError with a suggestion if unknown."""
    match = NAME.fullmatch(name)
    if match is None or match["base"] not in ARCHITECTURES:
        raise unknown("backbone", name, names())
    settings = _with_group(ARCHITECTURES[match["base"]], match["group"])
    if settings is None or not _fits(settings, match):
        raise unknown("backbone", name, names())
    found: dict[str, object] = {"name": name}
    if match["patch"]:
        found["patch"] = int(match["patch"])
    if match["conv"]:
        found["stem"] = "conv"
    if match["kind"] and isinstance(settings, SwinSettings):
        found["window"] = int(match["reach"])
    elif match["kind"]:
        found["attention"] = match["kind"] + (f":{match['reach']}" if match["reach"] else "")
    settings = dataclasses.replace(settings, **found)  # type: ignore[arg-type]
    return widened(settings, int(match["width"])) if match["width"] else settings


def _with_group(settings: Settings, group: str | None) -> Settings | None:
    if group is None:
        return settings
    if not isinstance(settings, ResNetSettings) or settings.bottleneck:
        return None
    return EquivariantSettings(settings.name, settings.layers, group)  # type: ignore[arg-type]


def _fits(settings: Settings, match: re.Match[str]) -> bool:
    """Whether the parts of a name belong to its family."""
    if is_grid(settings):
        return not (match["patch"] or match["conv"] or match["kind"])
    if bool(match["patch"]) == isinstance(settings, WITHOUT_PATCH):
        return False
    if match["conv"] and not (isinstance(settings, ViTSettings) and settings.stem == "linear"):
        return False
    if isinstance(settings, SwinSettings):
        return match["kind"] == "window" and bool(match["reach"])
    if match["kind"] is None:
        return True
    reach_fits = {"window": True, "neighbourhood": True, "strided": True, "axial": False}[match["kind"]]
    return isinstance(settings, ViTSettings) and bool(match["reach"]) == reach_fits


def widened(settings: Settings, width: int) -> Settings:
    """The same network with another width; heads keep their own width as nearly as they divide it."""
    if isinstance(settings, WITHOUT_PATCH):
        order = ORDER[settings.group] if isinstance(settings, EquivariantSettings) else 1
        if width % order:
            raise UsageError(
                f"the orientations of {settings.name} do not divide its width",
                got=width,
                expected=f"a multiple of {order}",
            )
        return dataclasses.replace(settings, width=width)
    if isinstance(settings, SwinSettings):
        first = _heads(width, settings.dim / settings.heads[0])
        return dataclasses.replace(settings, dim=width, heads=tuple(first * 2**i for i in range(4)))
    return dataclasses.replace(settings, dim=width, heads=_heads(width, settings.dim / settings.heads))


def _heads(width: int, head_width: float) -> int:
    """Rotary positions turn pairs of channels: a head has an even width where it can."""
    divisors = [n for n in range(1, width + 1) if width % n == 0 and (width // n % 2 == 0 or width % 2)]
    return min(divisors, key=lambda n: abs(width / n - head_width))


def for_axes(settings: Settings, axes: int) -> Settings:
    """The same network for images (2) or volumes (3); UsageError where its family has no form for volumes."""
    if axes == settings.axes:
        return settings
    if is_grid(settings) or isinstance(settings, SwinSettings | EquivariantSettings):
        raise UsageError(
            f"{settings.name} is for images only",
            got="volumes",
            expected="vit_..., hybrid_..., hvt_... or a plain resnet...",
            hint="vit_tiny_patch8_window4 has windows in three dimensions; "
            f"--set model.slices=16 shows slices to {settings.name}",
        )
    if axes not in (2, 3):
        raise UsageError("a network is for images or for volumes", got=f"{axes} axes", expected="2 or 3")
    return dataclasses.replace(settings, axes=axes)


def configured(
    name: str, *, channels: int = 3, size_px: int = 224, axes: int = 2, options: Mapping[str, object] | None = None
) -> Settings:
    """Settings of a name with everything decided. Raises UsageError for an unknown name or option, or its value."""
    settings = for_axes(parse(name), axes)
    given = dict(options or {})
    for key in given:
        if key not in settings.options:
            raise unknown(f"option of {name}", key, settings.options)
    if channels < 1 or size_px < 1:
        got = f"channels {channels}, size_px {size_px}"
        raise UsageError("channels and size_px are counts", got=got, expected="1 or more")
    if "stem" in settings.options:
        given["stem"] = given.get("stem") or stem_for(size_px)
    return dataclasses.replace(settings, channels=channels, size_px=size_px, **given)  # type: ignore[arg-type]
