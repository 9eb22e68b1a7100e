"""Everything a run needs before its first step: its images and its networks. Nothing is trained or written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from saccade.base.contracts import Source
from saccade.data.cache.image_cache import ImageCache, build_cache, check_damage, input_spec
from saccade.data.cache.slide_cache import must_stream, stream_tiles, usual_workers
from saccade.data.open import left_aside, unreadable_files
from saccade.data.probe import typical_px
from saccade.data.slides.slide_source import skipped_note
from saccade.data.volumes.intensity import make_intensity
from saccade.errors import UsageError
from saccade.methods.base import Method
from saccade.methods.registry import build_method, card_of
from saccade.models.backbones.build import build, use_checkpointing
from saccade.models.backbones.weights import load_model, load_timm_state
from saccade.models.nn.network import Network
from saccade.models.registry import configured, families_with, parse
from saccade.models.settings import BackboneSettings
from saccade.train.data_selection import (
    LoadedData,
    TrainValSplit,
    divide,
    open_subset,
    resolve_intensity,
    resolve_tiles,
    slides_of,
)
from saccade.train.loop import Console, Plan
from saccade.train.resolve import check_axes, resolve_size
from saccade.train.run_config import ResolvedRun, RunConfig
from saccade.train.settings import DataConfig, ModelConfig

OPTIONS = ("positions", "norm", "registers", "layer_scale", "drop_path", "attention", "pool", "stem")
"""Settings of ``model`` that go to the network."""


# --- images -------------------------------------------------------------------------------------


def _decode(source: Source, data: DataConfig, console: Console) -> ImageCache:
    """Decode the images, or prepare to stream tiles; the sizes in ``data`` are decided."""
    cache_px = int(data.cache_px or 0)
    unreadable, total = unreadable_files(source)
    if unreadable:
        check_damage(source.name, unreadable, total, data.max_bad, what="slides")
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in unreadable[:20])
        console.say(f"slides that cannot be read are left out:\n{reasons}")
    if note := skipped_note(source):
        console.say(note)
    if data.stream:
        workers = int(data.workers or 0)
        return stream_tiles(source, cache_px=cache_px, workers=workers, max_bad=data.max_bad, say=console.say)
    cache = build_cache(
        source,
        cache_px=cache_px,
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


def _size_of_weights(model: ModelConfig, axes: int) -> ModelConfig:
    """The input size that the weights were trained with, where no size is set and the data have the same axes."""
    if model.size_px is not None or not model.weights:
        return model
    spec = load_model(model.weights).spec
    return dataclasses.replace(model, size_px=spec.size_px) if spec.axes == axes else model


def resolve_stream(data: DataConfig, source: Source) -> DataConfig:
    """Decide whether tiles of slides are read when they are needed, and by how many processes."""
    stream = must_stream(source, int(data.cache_px or 0)) if data.stream is None else data.stream
    if not stream and data.workers:
        raise UsageError("data.workers has no effect where tiles are decoded once", hint="--set data.stream=true")
    return dataclasses.replace(data, stream=stream, workers=(data.workers or usual_workers()) if stream else 0)


def resolve_data(run: RunConfig, source: Source, device: torch.device) -> RunConfig:
    """Decide what follows from the source alone: intensity, tiles, sizes, streaming."""
    run = dataclasses.replace(run, data=resolve_tiles(resolve_intensity(run.data, source), source))
    run = resolve_size(run, typical_px(source, run.data.size_mm), device, source.axes)
    return dataclasses.replace(run, data=resolve_stream(run.data, source))


def open_images(
    run: RunConfig, device: torch.device, console: Console, source: Source | None = None
) -> tuple[RunConfig, LoadedData]:
    """Open the images that ``data`` names, unless ``source`` is they, and decode them.

    Returns the configuration with the sizes that follow.
    """
    subset = open_subset(run.data, run.model.weights, source)
    if aside := left_aside(subset.source):
        console.say(aside)
    if subset.held_out:
        console.say(
            f"the data bring no split: {len(subset.held_out):,} labelled images (whole groups) are held out for "
            "evaluation; --set data.split=all learns from all"
        )
    check_axes(run, subset.source.axes)
    run = dataclasses.replace(run, model=_size_of_weights(run.model, subset.source.axes))
    run = resolve_data(run, subset.source, device)
    cache = _decode(subset.source, run.data, console)
    return run, LoadedData(subset.source.name, len(subset.source), subset.held_out, cache, slides_of(subset.source))


def split_images(cache: ImageCache, run: RunConfig) -> TrainValSplit:
    """Training and validation images of a run; classes are numbered where it learns from labels."""
    labels = card_of(run.train.method).uses_labels
    split = divide(cache, run.data, labels=labels, seed=run.train.seed)
    if not labels:
        return split
    validation = split.validation
    return TrainValSplit(split.train.numbered(split.classes), validation and validation.numbered(split.classes))


def reopen(run: ResolvedRun, console: Console) -> TrainValSplit:
    """Training and validation images of an existing run, decoded and divided as they were."""
    subset = open_subset(run.data, run.model.weights)
    return split_images(_decode(subset.source, run.data, console), run)


# --- networks -----------------------------------------------------------------------------------


def model_options(model: ModelConfig) -> dict[str, object]:
    """Options for ``build``; UsageError for a setting that this network has no use for."""
    allowed, defaults = parse(model.backbone).options, ModelConfig()
    options: dict[str, object] = {}
    for name in OPTIONS:
        value = getattr(model, name)
        if not value or value == getattr(defaults, name):
            continue
        if name not in allowed:
            hint = "add _conv to the name instead" if name == "stem" else None
            raise UsageError(
                f"model.{name} has no effect on {model.backbone}",
                expected=" or ".join(families_with(name)) + "...",
                hint=hint,
            )
        options[name] = value
    return options


def network_settings(run: ResolvedRun) -> BackboneSettings:
    """The settings of the network of a run, without building it."""
    model, data = run.model, run.data
    axes = 2 if model.slices else data.axes
    return configured(
        model.backbone, channels=data.channels, size_px=model.size_px, axes=axes, options=model_options(model)
    )


def check_kind(backbone: str, cache: ImageCache) -> None:
    """UsageError where a network for images meets grids of vectors, or the other way round."""
    if parse(backbone).capabilities.reads_grids != cache.grid:
        raise UsageError(
            f"{backbone} reads {'images' if cache.grid else 'grids of vectors'}",
            got="grids of vectors" if cache.grid else "images",
            expected="--backbone grid_tiny or grid_micro" if cache.grid else "a backbone for images",
        )


def inherit(run: RunConfig, cache: ImageCache) -> RunConfig:
    """Take statistics of the input and options of the network from the weights a run starts from, where none are set.

    Without weights the statistics are those of the images.
    """
    model, data = run.model, run.data
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
    run = dataclasses.replace(run, data=dataclasses.replace(data, mean=mean, std=std))
    if not model.weights:
        return run
    trained_with: Any = loaded.backbone.config()["options"]
    inherited = {
        name: trained_with[name]
        for name in OPTIONS
        if name != "drop_path" and trained_with.get(name) and getattr(model, name) == getattr(ModelConfig(), name)
    }
    return dataclasses.replace(run, model=dataclasses.replace(model, **inherited))


def make_method(run: ResolvedRun, device: torch.device, *, load_weights: bool = True) -> Method:
    """The networks and the method; only the student has stochastic depth.

    Parameters
    ----------
    load_weights
        Start from ``model.weights``. A resumed run has weights of its own.
    """
    model, train = run.model, run.train
    options = model_options(model)
    still = {key: value for key, value in options.items() if key != "drop_path"}
    made_for: dict[str, Any] = {
        "channels": run.data.channels,
        "size_px": model.size_px,
        "axes": run.data.axes,
        "slices": model.slices,
    }
    student = build(model.backbone, **made_for, options=options, seed=train.seed)
    if train.checkpointing:
        use_checkpointing(student)
    if model.weights and load_weights:
        loaded = load_model(model.weights, channels=run.data.channels, size_px=model.size_px)
        load_timm_state(student, loaded.backbone.state_dict())

    def make_teacher() -> Network:
        return build(model.backbone, **made_for, options=still, seed=train.seed)

    return build_method(train.method, student, make_teacher, run.method, seed=train.seed).to(device)


def make_plan(folder: Path, run: ResolvedRun, cache: ImageCache, device: torch.device) -> Plan:
    """What the training loop needs beside the method and the images."""
    spec = input_spec(cache, run.model.size_px, grey=run.data.grey)
    spec = dataclasses.replace(spec, mean=run.data.mean, std=run.data.std)
    return Plan(folder, run.train, run.optim, run.views, spec, device, bool(run.model.weights))
