"""Decide every open setting (None) of a run from the data, the network and the device.

The rules are all here; ``saccade pretrain`` prints their result and config.yaml stores it. The measurements behind them
are in docs/log.md.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from saccade import runtime
from saccade.augment.settings import ONLY_IMAGES, ResolvedViews, ViewsConfig, resolve_grid_views, resolve_views
from saccade.base.config import resolve_section
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts
from saccade.methods.registry import card_of, resolve_method
from saccade.models.registry import for_axes, parse
from saccade.train.run_config import ResolvedRun, RunConfig
from saccade.train.settings import (
    ALL_BUT_TEST,
    NO_TILES,
    DataConfig,
    ResolvedData,
    ResolvedModel,
    ResolvedOptim,
    ResolvedTrain,
    TrainConfig,
)


def check_config(run: RunConfig) -> None:
    """Raise UsageError, with the name of the setting, for values that cannot be meant; before any data are read."""
    data, model, optim, train = run.data, run.model, run.optim, run.train
    positive = {
        "train.batch": train.batch,
        "train.accumulate": train.accumulate,
        "train.steps": train.steps,
        "train.epochs": train.epochs,
        "train.keep": train.keep,
        "train.log_every": train.log_every,
        "train.evaluate_every": train.evaluate_every,
        "train.save_every": train.save_every,
        "model.size_px": model.size_px,
        "data.cache_px": data.cache_px,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be above 0", got=value)
    _check_labels(run)
    if not 0 <= data.validation < 1:
        raise UsageError("data.validation is a fraction of the images", got=data.validation, expected="0 to below 1")
    if optim.layer_decay is not None and not 0 < optim.layer_decay <= 1:
        raise UsageError("optim.layer_decay is a factor", got=optim.layer_decay, expected="above 0, at most 1")
    if optim.freeze_fraction is not None and not 0 <= optim.freeze_fraction < 1:
        raise UsageError(
            "optim.freeze_fraction is a fraction of the run", got=optim.freeze_fraction, expected="0 to below 1"
        )
    not_negative = {
        "train.patience": train.patience,
        "data.limit": data.limit,
        "model.slices": model.slices,
        "train.minutes": train.minutes,
        "train.seed": train.seed,
        "optim.lr": optim.lr,
        "optim.clip_norm": optim.clip_norm,
        "data.size_mm": data.size_mm,
    }
    for name, value in not_negative.items():
        if value is not None and value < 0:
            raise UsageError(f"{name} must not be negative", got=value)


def _check_labels(run: RunConfig) -> None:
    """Raise UsageError for settings of supervised runs elsewhere, and the other way round."""
    data, train = run.data, run.train
    if not card_of(train.method).uses_labels and (data.validation or train.patience):
        name = "data.validation" if data.validation else "train.patience"
        raise UsageError(f"{name} has no effect on {train.method}, which uses no labels", hint="saccade finetune")
    if train.patience and not data.validation:
        raise UsageError("train.patience needs validation images", hint="set data.validation, for example to 0.2")
    if run.optim.layer_decay is not None and run.frozen:
        raise UsageError("optim.layer_decay has no effect on a frozen backbone", hint="leave out one of them")
    if card_of(train.method).uses_labels and train.choose == "best":
        raise UsageError("train.choose has no effect on supervised runs", hint="data.validation")


def check_batch(batch: int, images: int) -> None:
    """Raise UsageError unless a batch divides evenly over the processes and holds every image once at most."""
    world = runtime.world_size()
    if batch % world:
        raise UsageError("the batch must divide evenly over the processes", got=f"batch {batch}, {world} processes")
    if batch > images:
        raise UsageError("the batch is larger than the data", got=f"batch {batch}, {images} images")


DEFAULT_LARGEST_PX = {("cpu", 2): 64, ("cpu", 3): 32, ("cuda", 2): 224, ("cuda", 3): 96}
"""Largest input side that is chosen by itself, by device and axes; a volume of 32 has as many tokens as an image of 64
with patches of 8."""


def resolve_size(run: RunConfig, image_px: int, device: torch.device, axes: int = 2) -> RunConfig:
    """Decide the size of the network's input and of the decoded images.

    Parameters
    ----------
    image_px
        Typical shorter side of the images in pixels.
    """
    model, data = run.model, run.data
    size = model.size_px
    network = parse(model.backbone)
    unit = network.unit_px
    if size is None:
        largest = DEFAULT_LARGEST_PX["cpu" if device.type == "cpu" else "cuda", axes]
        size = unit * max(2, round(min(image_px, largest) / unit))
    elif network.capabilities.transformer and size % unit:
        near = f"{max(1, size // unit) * unit} or {(size // unit + 1) * unit}"
        raise UsageError(f"--size must be a multiple of {unit} for {model.backbone}", got=size, expected=near)
    cache_px = data.cache_px or max(size, min(image_px, round(1.5 * size)))
    return dataclasses.replace(
        run,
        model=dataclasses.replace(model, size_px=size),
        data=dataclasses.replace(data, cache_px=cache_px),
    )


def check_axes(run: RunConfig, axes: int) -> None:
    """Raise UsageError for a network or setting that does not apply to images (axes 2) or volumes (axes 3)."""
    if run.data.axes not in (None, axes):
        raise UsageError("the data are not what data.axes says", got=f"{axes} axes", expected=run.data.axes)
    if axes == 2 and run.model.slices:
        raise UsageError("model.slices has no effect on images", hint="it is for volumes")
    if not run.model.slices:
        for_axes(parse(run.model.backbone), axes)


TRIAL_STEPS = 1000
"""Length of a run limited by minutes until its steps have been timed: for its price, and while they are."""


def resolve(
    run: RunConfig,
    *,
    images: int,
    channels: int,
    device: torch.device,
    axes: int = 2,
    labels: tuple[str, ...] = (),
    steps: int | None = None,
) -> ResolvedRun:
    """Decide every setting that is still None.

    Parameters
    ----------
    run
        With sizes decided (``prepare.open_images`` or ``resolve_size``) and the statistics of the input
        (``prepare.inherit``).
    images
        Number of images to learn from.
    channels, axes
        Of the decoded data.
    labels
        The classes, for methods that use labels.
    steps
        Of a run limited by ``train.minutes``; TRIAL_STEPS where they are not known yet.

    Raises
    ------
    UsageError
        For settings that do not fit the data, the network or one another.
    """
    check_axes(run, axes)
    train, weights = run.train, bool(run.model.weights)
    world = runtime.world_size()
    batch = train.batch or max(world, min(64 if device.type == "cpu" else 256, max(2, images)) // world * world)
    check_batch(batch, images)
    _check_grey(run, channels)
    steps = _steps(train, batch, images, steps)
    uses_labels = card_of(train.method).uses_labels
    resolved = ResolvedRun(
        data=_resolve_data(run.data, channels, axes),
        model=resolve_section(ResolvedModel, run.model, drop_path=run.model.drop_path or 0.0),
        views=_resolve_views(run, channels, axes, local_count=4 if device.type == "cpu" else 8),
        method=run.method,
        optim=_resolve_optim(run, batch * train.accumulate, steps),
        train=resolve_section(
            ResolvedTrain,
            train,
            batch=batch,
            steps=steps,
            epochs=train.epochs or round(steps * batch * train.accumulate / images, 3),
            precision=train.precision or runtime.usual_precision(device),
            device=str(device),
            on_collapse=train.on_collapse or ("repair" if weights else "warn"),
            choose=train.choose or ("last" if uses_labels else "best"),
            log_every=train.log_every or max(1, min(10, steps // 100)),
            # Early stopping looks twice as often.
            evaluate_every=train.evaluate_every or max(1, math.ceil(steps / (20 if train.patience else 10))),
            save_every=train.save_every or max(1, min(500, math.ceil(steps / 10))),
        ),
    )
    method = resolve_method(train.method, run.method, _facts(resolved, images, labels))
    return dataclasses.replace(resolved, method=resolve_section(type(method), method))


def _check_grey(run: RunConfig, channels: int) -> None:
    if run.data.grey and channels != 3:
        raise UsageError(f"data.grey has no effect on images with {channels} channels", hint="leave it out")
    if run.data.grey and run.views.stain:
        raise UsageError("views.stain has no meaning for images without colour", hint="leave out stain or grey")


def _steps(train: TrainConfig, batch: int, images: int, timed: int | None) -> int:
    limits = [name for name in ("steps", "epochs", "minutes") if getattr(train, name)]
    if len(limits) > 1:
        raise UsageError("the length of a run is given twice", got=" and ".join(limits), expected="one of them")
    if train.steps is not None:
        return train.steps
    if train.minutes:
        return timed or TRIAL_STEPS
    return max(1, math.ceil(images * (train.epochs or 100.0) / (batch * train.accumulate)))


def _resolve_data(data: DataConfig, channels: int, axes: int) -> ResolvedData:
    no_tiles = {name: value for name, value in NO_TILES.items() if getattr(data, name) is None}
    return resolve_section(
        ResolvedData,
        data,
        channels=channels,
        axes=axes,
        split=data.split or ALL_BUT_TEST,
        intensity=data.intensity or "",
        window=data.window or (),
        **no_tiles,
    )


def _resolve_views(run: RunConfig, channels: int, axes: int, *, local_count: int) -> ResolvedViews:
    size_px, network = int(run.model.size_px or 0), parse(run.model.backbone)
    if network.capabilities.reads_grids:
        views = _without_defaults_for_images(run.views, run.train.method)
        return resolve_grid_views(views, size_px=size_px, local_count=local_count)
    return resolve_views(
        run.views,
        size_px=size_px,
        channels=channels,
        axes=axes,
        patch=network.unit_px,
        whole_patches=network.capabilities.transformer,
        local_count=local_count,
    )


def _without_defaults_for_images(views: ViewsConfig, method: str) -> ViewsConfig:
    """The views without a method's defaults that only apply to images, such as a scale of crops.

    What the user sets stays, and is refused later.
    """
    defaults = {key.removeprefix("views."): value for key, value in card_of(method).defaults.items()}
    reset = {name: getattr(ViewsConfig(), name) for name in ONLY_IMAGES if defaults.get(name) == getattr(views, name)}
    return dataclasses.replace(views, **reset)


def _resolve_optim(run: RunConfig, images_per_step: int, steps: int) -> ResolvedOptim:
    """The method's rate for this kind of network and length of run, scaled by the square root of the batch, which
    suits AdamW at batches of 16 to 256 (Malladi et al. 2022)."""
    optim, weights = run.optim, run.model.weights
    card, transformer = card_of(run.train.method), parse(run.model.backbone).capabilities.transformer
    peak = card.lr_at(steps, transformer=transformer, pretrained=bool(weights))
    decays = weights and transformer and not (card.uses_labels and run.frozen)
    decided = {
        "lr": round(peak * math.sqrt(images_per_step / 256), 6),
        "warmup_fraction": 0.1,
        "layer_decay": 0.75 if decays else 1.0,
        "freeze_fraction": 0.1 if weights and not card.uses_labels else 0.0,
    }
    open_settings = {name: value for name, value in decided.items() if getattr(optim, name) is None}
    return resolve_section(ResolvedOptim, optim, **open_settings)


def _facts(run: ResolvedRun, images: int, labels: tuple[str, ...]) -> DatasetFacts:
    """What the open settings of a method are decided from."""
    network = parse(run.model.backbone)
    return DatasetFacts(
        images,
        run.train.images_per_step,
        run.train.steps,
        batch_norm=network.capabilities.batch_norm,
        transformer=network.capabilities.transformer,
        pretrained=bool(run.model.weights),
        maskable=network.capabilities.maskable and run.model.attention in ("", "full") and not run.model.slices,
        axes=run.data.axes,
        view_px=run.views.global_px,
        unit_px=network.unit_px,
        dim=network.width,
        labels=labels,
        micro_batch=run.train.batch,
    )
