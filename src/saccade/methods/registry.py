"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from saccade.errors import UsageError, unknown
from saccade.methods.base import Facts, Method
from saccade.methods.dino import Dino, DinoConfig, resolve_dino
from saccade.methods.dinov2 import DinoV2, DinoV2Config, resolve_dinov2
from saccade.methods.ijepa import Latent, LatentConfig, resolve_latent
from saccade.methods.lejepa import Lejepa, LejepaConfig, resolve_lejepa
from saccade.methods.mae import Masked, MaskedConfig, resolve_masked
from saccade.methods.moco_v3 import Contrast, ContrastConfig, resolve_contrast
from saccade.methods.relative_position import Position, PositionConfig, resolve_position
from saccade.methods.same_image import Pair, PairConfig, resolve_pair
from saccade.methods.supervised import Supervised, SupervisedConfig, resolve_supervised

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Entry:
    """One method.

    config     its dataclass; resolve(config, facts) fills its Nones; kind(networks, config, seed) makes it
    twin       it has a teacher: a second network of the same shape
    hides      it leaves patches out, which only some networks allow
    volumes    it works on volumes, too
    defaults   settings of other sections that it needs
    """

    config: type
    resolve: Callable[[Any, Facts], Any]
    kind: Callable[..., Method]
    twin: bool = False
    hides: bool = False
    volumes: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)


PAIR_OF_VIEWS: dict[str, Any] = {"views.global_count": 2, "views.local_count": 0}
ONE_VIEW: dict[str, Any] = {
    "views.global_count": 1,
    "views.local_count": 0,
    "views.global_scale": (0.2, 1.0),
    "views.jitter_prob": 0.0,
    "views.grey_prob": 0.0,
    "views.blur_prob": (0.0, 0.0, 0.0),
    "views.low_resolution_prob": 0.0,
}

METHODS: dict[str, Entry] = {
    "dino": Entry(
        DinoConfig,
        resolve_dino,
        Dino,
        twin=True,
    ),
    "dinov2": Entry(
        DinoV2Config,
        resolve_dinov2,
        DinoV2,
        twin=True,
        hides=True,
    ),
    "contrast": Entry(
        ContrastConfig,
        resolve_contrast,
        Contrast,
        twin=True,
        defaults=PAIR_OF_VIEWS,
    ),
    "lejepa": Entry(
        LejepaConfig,
        resolve_lejepa,
        Lejepa,
    ),
    "pair": Entry(
        PairConfig,
        resolve_pair,
        Pair,
        defaults=PAIR_OF_VIEWS,
    ),
    "position": Entry(
        PositionConfig,
        resolve_position,
        Position,
        volumes=False,
        defaults=ONE_VIEW,
    ),
    "masked": Entry(
        MaskedConfig,
        resolve_masked,
        Masked,
        hides=True,
        defaults=ONE_VIEW,
    ),
    "latent": Entry(
        LatentConfig,
        resolve_latent,
        Latent,
        twin=True,
        hides=True,
        defaults=ONE_VIEW | {"model.pool": "mean"},
    ),
    "supervised": Entry(
        SupervisedConfig,
        resolve_supervised,
        Supervised,
        defaults={"views.global_count": 1, "views.local_count": 0},
    ),
}


def _entry(name: str) -> Entry:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def method_defaults(name: str) -> Mapping[str, Any]:
    """Settings of other sections that a method needs, by dotted key."""
    return _entry(name).defaults


def config_type(name: str) -> type:
    return _entry(name).config


def resolve_method(name: str, config: Any, facts: Facts) -> Any:
    """The method's configuration without Nones. UsageError where the network does not suit the method."""
    entry = _entry(name)
    if entry.hides and not facts.maskable:
        raise UsageError(
            f"{name} hides patches from the network, which this one cannot leave out",
            expected="a vit_ backbone with linear patches and full attention",
            hint="of the methods that suit every network, dino is the one to begin with",
        )
    if facts.axes == 3 and not entry.volumes:
        able = ", ".join(known for known, one in METHODS.items() if one.volumes)
        raise UsageError(f"{name} is for images only", got="volumes", expected=able)
    return entry.resolve(config, facts)


def build_method(name: str, student: nn.Module, make_teacher: Make, config: Any, *, seed: int) -> Method:
    """``config`` is resolved; ``make_teacher`` builds the student's shape without stochastic depth, if it is needed."""
    entry = _entry(name)
    networks = (student, make_teacher()) if entry.twin else (student,)
    return entry.kind(*networks, config, seed=seed)
