"""Everything a run needs before its first step: its settings, its images, its networks. Nothing is trained or written.

``sections`` are the settings of a run by section (see config), ``cache`` holds decoded images.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from saccade.augment.views import ViewsConfig
from saccade.base import config
from saccade.base.config import Sections
from saccade.base.contracts import Source
from saccade.data.cache.image_cache import ImageCache, build_cache, check_damage, input_spec
from saccade.data.cache.slide_cache import must_stream, stream_tiles, usual_workers
from saccade.data.open import left_aside
from saccade.data.probe import typical_px
from saccade.data.slides.slide_source import tiles_in
from saccade.data.volumes.intensity import make_intensity
from saccade.errors import UsageError
from saccade.methods.base import Method
from saccade.methods.registry import build_method, card_of
from saccade.models.backbones.build import build, use_checkpointing
from saccade.models.backbones.weights import load_model, load_timm_state
from saccade.models.nn.network import Network
from saccade.models.registry import configured, families_with, parse
from saccade.models.settings import Settings
from saccade.train.data_selection import Opened, Shares, divide, open_part, settle_intensity, settle_tiles, slides_of
from saccade.train.loop import Console, Plan
from saccade.train.resolve import check_axes, resolve_size
from saccade.train.settings import DataConfig, ModelConfig, OptimConfig, TrainConfig

OPTIONS = ("positions", "norm", "registers", "layer_scale", "drop_path", "attention", "pool", "stem")
"""Settings of ``model`` that go to the network."""


# --- settings -----------------------------------------------------------------------------------


def section_types(method: str) -> dict[str, type]:
    card = card_of(method)
    return {
        "data": DataConfig,
        "model": ModelConfig,
        "views": ViewsConfig,
        card.name: card.config_cls,
        "optim": OptimConfig,
        "train": TrainConfig,
    }


def default_sections(method: str) -> Sections:
    """Every section with its defaults, for one method."""
    sections = {name: kind() for name, kind in section_types(method).items()}
    return sections | {"train": dataclasses.replace(sections["train"], method=card_of(method).name)}


def absolute_paths(sections: Sections) -> Sections:
    """Files that a resumed run needs are found from any folder."""
    named = {"data.manifest": sections["data"].manifest, "model.weights": sections["model"].weights}
    return config.override(sections, {k: str(Path(v).resolve()) for k, v in named.items() if v and Path(v).exists()})


# --- images -------------------------------------------------------------------------------------


def _decode(source: Source, sections: Sections, console: Console) -> ImageCache:
    data: DataConfig = sections["data"]
    assert data.cache_px is not None
    found = tiles_in(source)
    if found is not None and found[0].unreadable:
        bad = found[0].unreadable
        check_damage(found[0].name, bad, len(bad) + len(found[0].entries), data.max_bad, what="slides")
        console.say("slides that cannot be read are left out:\n" + "\n".join(f"  {n}: {why}" for n, why in bad[:20]))
    if data.stream:
        assert data.workers
        return stream_tiles(source, cache_px=data.cache_px, workers=data.workers, max_bad=data.max_bad, say=console.say)
    cache = build_cache(
        source,
        cache_px=data.cache_px,
        channels=data.channels,
        max_bad=data.max_bad,
        memory_limit_mib=data.cache_mib,
        intensity=make_intensity(data.intensity, data.window or ()) if data.intensity else None,
        size_mm=data.size_mm,
        report=lambda done, total: console.progress(done, total, {}) if done % 64 == 0 or done == total else None,
    )
    if cache.damaged:
        console.say(
            f"{len(cache.damaged)} damaged images are left out:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in cache.damaged[:20])
        )
    return cache


def _size_of_weights(sections: Sections, axes: int) -> Sections:
    """The size that the weights are used to, where none is named and they were made for the same kind of data."""
    model: ModelConfig = sections["model"]
    if model.size_px is not None or not model.weights:
        return sections
    spec = load_model(model.weights).spec
    if spec.axes != axes:
        return sections
    return sections | {"model": dataclasses.replace(model, size_px=spec.size_px)}


def settle_stream(data: DataConfig, source: Source) -> DataConfig:
    """Whether tiles of slides are read when they are wanted, and by how many processes."""
    assert data.cache_px is not None
    stream = must_stream(source, data.cache_px) if data.stream is None else data.stream
    if not stream and data.workers:
        raise UsageError("data.workers has no effect where tiles are decoded once", hint="--set data.stream=true")
    return dataclasses.replace(data, stream=stream, workers=(data.workers or usual_workers()) if stream else 0)


def open_images(sections: Sections, device: torch.device, console: Console) -> tuple[Sections, Opened]:
    """Open and decode the images that ``data`` names; the sections with the sizes that follow from them."""
    part = open_part(sections["data"], sections["model"].weights)
    if aside := left_aside(part.source):
        console.say(aside)
    if part.held_out:
        console.say(
            f"the data bring no split: {len(part.held_out):,} labelled images (whole groups) are held out for "
            "evaluation; --set data.split=all learns from all"
        )
    sections = sections | {"data": settle_tiles(settle_intensity(sections["data"], part.source), part.source)}
    axes = part.source.axes
    check_axes(sections, axes)
    sections = _size_of_weights(sections, axes)
    sections = resolve_size(sections, typical_px(part.source, sections["data"].size_mm), device, axes)
    sections = sections | {"data": settle_stream(sections["data"], part.source)}
    cache = _decode(part.source, sections, console)
    return sections, Opened(part.source.name, len(part.source), part.held_out, cache, slides_of(part.source))


def shares_of(cache: ImageCache, sections: Sections) -> Shares:
    """The shares of a run, their classes numbered where it learns from labels."""
    train: TrainConfig = sections["train"]
    shares = divide(cache, sections["data"], method=train.method, seed=train.seed)
    if train.method != "supervised":
        return shares
    judge = shares.validation
    return Shares(shares.train.numbered(shares.classes), judge and judge.numbered(shares.classes))


def reopen(sections: Sections, console: Console) -> Shares:
    """The shares of a run that is there already: its images decoded and divided as they were."""
    part = open_part(sections["data"], sections["model"].weights)
    return shares_of(_decode(part.source, sections, console), sections)


# --- networks -----------------------------------------------------------------------------------


def model_options(model: ModelConfig) -> dict[str, object]:
    """Options for ``build``; UsageError for a setting that this network has no use for."""
    known, defaults = parse(model.backbone).options, ModelConfig()
    found: dict[str, object] = {}
    for name in OPTIONS:
        value = getattr(model, name)
        if not value or value == getattr(defaults, name):
            continue
        if name not in known:
            hint = "add _conv to the name instead" if name == "stem" else None
            raise UsageError(
                f"model.{name} has no effect on {model.backbone}",
                expected=" or ".join(families_with(name)) + "...",
                hint=hint,
            )
        found[name] = value
    return found


def network_settings(sections: Sections, channels: int) -> Settings:
    """What the network of resolved sections is, without building it."""
    model: ModelConfig = sections["model"]
    axes = 2 if model.slices else sections["data"].axes
    return configured(
        model.backbone, channels=channels, size_px=int(model.size_px or 0), axes=axes, options=model_options(model)
    )


def check_kind(backbone: str, cache: ImageCache) -> None:
    """UsageError where a network for images meets grids of vectors, or the other way round."""
    if parse(backbone).capabilities.reads_grids != cache.grid:
        raise UsageError(
            f"{backbone} reads {'images' if cache.grid else 'grids of vectors'}",
            got="grids of vectors" if cache.grid else "images",
            expected="--backbone grid_tiny or grid_micro" if cache.grid else "a backbone for images",
        )


def inherit(sections: Sections, cache: ImageCache) -> Sections:
    """What the weights a run starts from say of the network and its input, where the settings leave it open."""
    model: ModelConfig = sections["model"]
    data: DataConfig = sections["data"]
    check_kind(model.backbone, cache)
    usual = input_spec(cache, int(model.size_px or 0), grey=data.grey)
    if model.weights:
        loaded = load_model(model.weights, channels=cache.channels, size_px=model.size_px)
        spec = loaded.spec
        if (spec.axes, spec.channels, spec.offset, spec.scale) == (
            usual.axes,
            usual.channels,
            usual.offset,
            usual.scale,
        ):
            usual = spec
    mean, std = data.mean or usual.mean, data.std or usual.std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != cache.channels:
            raise UsageError(f"data.{name} has a value for each channel", got=len(values), expected=cache.channels)
    sections = sections | {"data": dataclasses.replace(data, mean=mean, std=std)}
    if not model.weights:
        return sections
    own: Any = loaded.backbone.config()["options"]
    found = {name: own[name] for name in OPTIONS if name != "drop_path" and own.get(name)}
    open_ = {name: value for name, value in found.items() if getattr(model, name) == getattr(ModelConfig(), name)}
    return sections | {"model": dataclasses.replace(model, **open_)}


def make_method(sections: Sections, channels: int, device: torch.device, *, load_weights: bool = True) -> Method:
    """The networks and the method; only what learns has stochastic depth.

    load_weights: start from ``model.weights``; a resumed run has its own.
    """
    model: ModelConfig = sections["model"]
    train: TrainConfig = sections["train"]
    size_px, axes = model.size_px, sections["data"].axes
    assert size_px is not None and axes is not None
    options = model_options(model)
    still = {name: value for name, value in options.items() if name != "drop_path"}
    made_for = {"channels": channels, "size_px": size_px, "axes": axes, "slices": model.slices}
    student = build(model.backbone, **made_for, options=options, seed=train.seed)
    if train.checkpointing:
        use_checkpointing(student)
    if model.weights and load_weights:
        loaded = load_model(model.weights, channels=channels, size_px=size_px)
        load_timm_state(student, loaded.backbone.state_dict())

    def make_teacher() -> Network:
        return build(model.backbone, **made_for, options=still, seed=train.seed)

    return build_method(train.method, student, make_teacher, sections[train.method], seed=train.seed).to(device)


def make_plan(out: Path, sections: Sections, cache: ImageCache, device: torch.device) -> Plan:
    data: DataConfig = sections["data"]
    spec = input_spec(cache, sections["model"].size_px, grey=data.grey)
    spec = dataclasses.replace(spec, mean=data.mean or spec.mean, std=data.std or spec.std)
    pretrained = bool(sections["model"].weights)
    return Plan(out, sections["train"], sections["optim"], sections["views"], spec, device, pretrained)
