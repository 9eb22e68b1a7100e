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

from saccade.errors import UsageError, unknown
from saccade.models.settings import (
    ORDER,
    EquivariantSettings,
    HVTSettings,
    MapStem,
    ResNetSettings,
    Settings,
    SwinSettings,
    ViTSettings,
    is_grid,
)

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


def stem_for(size_px: int) -> MapStem:
    """The stem that leaves a last map of about 4 x 4 to 7 x 7 at this size."""
    if size_px <= 32:
        return "cifar"
    return "small" if size_px <= 64 else "imagenet"


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
