"""None becomes a number: every setting left open is decided from the data, the network and the device.

The rules stand here in one place; ``saccade pretrain`` prints what they gave, and config.yaml keeps it.
The figures behind them are in docs/log.md.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from saccade import runtime
from saccade.augment.settings import ONLY_IMAGES
from saccade.augment.views import ViewsConfig, resolve_grid_views, resolve_views
from saccade.base.config import Sections, unresolved
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts
from saccade.methods.registry import card_of, resolve_method
from saccade.models.registry import for_axes, parse
from saccade.train.settings import ALL_BUT_TEST, NO_TILES, DataConfig, ModelConfig, OptimConfig, TrainConfig


def check_sections(sections: Sections) -> None:
    """Raise UsageError, with the name of the setting, for numbers that cannot be meant; before anything is read."""
    train: TrainConfig = sections["train"]
    model: ModelConfig = sections["model"]
    above = {
        "train.batch": train.batch,
        "train.accumulate": train.accumulate,
        "train.steps": train.steps,
        "train.epochs": train.epochs,
        "train.keep": train.keep,
        "train.log_every": train.log_every,
        "train.evaluate_every": train.evaluate_every,
        "train.save_every": train.save_every,
        "model.size_px": model.size_px,
        "data.cache_px": sections["data"].cache_px,
    }
    for name, value in above.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be above 0", got=value)
    data: DataConfig = sections["data"]
    if train.method != "supervised" and (data.validation or train.patience):
        name = "data.validation" if data.validation else "train.patience"
        raise UsageError(f"{name} has no effect on {train.method}, which uses no labels", hint="saccade finetune")
    if train.patience and not data.validation:
        raise UsageError("train.patience needs images to judge by", hint="set data.validation, for example to 0.2")
    if not 0 <= data.validation < 1:
        raise UsageError("data.validation is a share of the images", got=data.validation, expected="0 to below 1")
    floor = {
        "train.patience": train.patience,
        "data.limit": data.limit,
        "model.slices": model.slices,
        "train.minutes": train.minutes,
        "train.seed": train.seed,
        "optim.lr": sections["optim"].lr,
        "optim.clip_norm": sections["optim"].clip_norm,
        "data.size_mm": data.size_mm,
    }
    decay, frozen = sections["optim"].layer_decay, sections["optim"].freeze_fraction
    if decay is not None and not 0 < decay <= 1:
        raise UsageError("optim.layer_decay is a factor", got=decay, expected="above 0, at most 1")
    if frozen is not None and not 0 <= frozen < 1:
        raise UsageError("optim.freeze_fraction is a share of the run", got=frozen, expected="0 to below 1")
    if train.method == "supervised":
        if decay is not None and sections["supervised"].frozen:
            raise UsageError("optim.layer_decay has no effect on a frozen backbone", hint="leave out one of them")
        if train.choose == "best":
            raise UsageError("train.choose has no effect on supervised runs", hint="data.validation")
    for name, value in floor.items():
        if value is not None and value < 0:
            raise UsageError(f"{name} must not be negative", got=value)


def check_batch(batch: int, images: int) -> None:
    """A batch must part evenly over the processes and may not hold an image twice."""
    world = runtime.world_size()
    if batch % world:
        raise UsageError("the batch must divide evenly over the processes", got=f"batch {batch}, {world} processes")
    if batch > images:
        raise UsageError("the batch is larger than the data", got=f"batch {batch}, {images} images")


LARGEST = {("cpu", 2): 64, ("cpu", 3): 32, ("cuda", 2): 224, ("cuda", 3): 96}
"""Side of the input that is taken by itself, by device and axes; a volume of 32 has as many tokens as an image of 64
with patches of 8."""


def resolve_size(sections: Sections, image_px: int, device: torch.device, axes: int = 2) -> Sections:
    """Size of the network's input, and how large decoded images are kept. ``image_px``: typical shorter side."""
    model: ModelConfig = sections["model"]
    data: DataConfig = sections["data"]
    size = model.size_px
    network = parse(model.backbone)
    unit = network.unit_px
    if size is None:
        largest = LARGEST["cpu" if device.type == "cpu" else "cuda", axes]
        size = unit * max(2, round(min(image_px, largest) / unit))
    elif network.capabilities.transformer and size % unit:
        near = f"{max(1, size // unit) * unit} or {(size // unit + 1) * unit}"
        raise UsageError(f"--size must be a multiple of {unit} for {model.backbone}", got=size, expected=near)
    cache_px = data.cache_px or max(size, min(image_px, round(1.5 * size)))
    return sections | {
        "model": dataclasses.replace(model, size_px=size),
        "data": dataclasses.replace(data, cache_px=cache_px),
    }


def check_axes(sections: Sections, axes: int) -> None:
    """Raise UsageError for a network or setting that these images, or volumes, have no use for."""
    model, named = sections["model"], sections["data"].axes
    if named not in (None, axes):
        raise UsageError("the data are not what data.axes says", got=f"{axes} axes", expected=named)
    if axes == 2 and model.slices:
        raise UsageError("model.slices has no effect on images", hint="it is for volumes")
    if not model.slices:
        for_axes(parse(model.backbone), axes)


def resolve(sections: Sections, *, images: int, channels: int, device: torch.device, axes: int = 2) -> Sections:
    """Everything but the length: ``steps`` stays None when minutes limit the run.

    images     images in use       channels, axes   of the decoded data
    """
    check_axes(sections, axes)
    train: TrainConfig = sections["train"]
    model: ModelConfig = sections["model"]
    world = runtime.world_size()
    batch = train.batch or max(world, min(64 if device.type == "cpu" else 256, max(2, images)) // world * world)
    check_batch(batch, images)
    if sections["data"].grey and channels != 3:
        raise UsageError(f"data.grey has no effect on images with {channels} channels", hint="leave it out")
    if sections["data"].grey and sections["views"].stain:
        raise UsageError("views.stain has no meaning for images without colour", hint="leave out stain or grey")
    per_step = batch * train.accumulate
    limits = [name for name in ("steps", "epochs", "minutes") if getattr(train, name)]
    if len(limits) > 1:
        raise UsageError("the length of a run is given twice", got=" and ".join(limits), expected="one of them")
    steps = train.steps
    if not train.minutes and steps is None:
        steps = max(1, math.ceil(images * (train.epochs or 100.0) / per_step))
    precision = train.precision or runtime.usual_precision(device)
    assert model.size_px is not None
    return sections | {
        "data": dataclasses.replace(
            sections["data"],
            channels=channels,
            axes=axes,
            split=sections["data"].split or ALL_BUT_TEST,
            intensity=sections["data"].intensity or "",
            window=sections["data"].window or (),
            **{name: value for name, value in NO_TILES.items() if getattr(sections["data"], name) is None},
        ),
        "model": dataclasses.replace(model, drop_path=0.0 if model.drop_path is None else model.drop_path),
        "train": dataclasses.replace(
            train,
            batch=batch,
            steps=steps,
            precision=precision,
            device=str(device),
            on_collapse=train.on_collapse or ("repair" if model.weights else "warn"),
            choose=train.choose or ("last" if train.method == "supervised" else "best"),
        ),
        "optim": _resolve_optim(sections, per_step),
        "views": _resolve_views(sections, channels, axes, local_count=4 if device.type == "cpu" else 8),
    }


def _resolve_views(sections: Sections, channels: int, axes: int, *, local_count: int) -> ViewsConfig:
    size_px, network = sections["model"].size_px, parse(sections["model"].backbone)
    if network.capabilities.reads_grids:
        views = _without_defaults_for_images(sections["views"], sections["train"].method)
        return resolve_grid_views(views, size_px=size_px, local_count=local_count)
    return resolve_views(
        sections["views"],
        size_px=size_px,
        channels=channels,
        axes=axes,
        patch=network.unit_px,
        whole_patches=network.capabilities.transformer,
        local_count=local_count,
    )


def _without_defaults_for_images(views: ViewsConfig, method: str) -> ViewsConfig:
    """What a method usually asks of images (a scale of crops) is not asked of grids; what a user asks still is."""
    usual = {key.removeprefix("views."): value for key, value in card_of(method).defaults.items()}
    kept = {name: getattr(ViewsConfig(), name) for name in ONLY_IMAGES if usual.get(name) == getattr(views, name)}
    return dataclasses.replace(views, **kept)


def _resolve_optim(sections: Sections, per_step: int) -> OptimConfig:
    """DINO's 5e-4 for transformers; CNNs with batch norm bear more, and labels bear more than DINO. Scaled by the
    square root of the batch, which suits AdamW at batches of 16 to 256 (Malladi et al. 2022)."""
    config: OptimConfig = sections["optim"]
    model: ModelConfig = sections["model"]
    card = card_of(sections["train"].method)
    labels = card.uses_labels
    transformer = parse(model.backbone).capabilities.transformer
    rates = card.finetuning_lr if model.weights and card.finetuning_lr else card.peak_lr
    peak = rates.transformer if transformer else rates.cnn
    lr = config.lr if config.lr is not None else round(peak * math.sqrt(per_step / 256), 6)
    warmup = 0.1 if config.warmup_fraction is None else config.warmup_fraction
    slow = model.weights and transformer and not (labels and sections["supervised"].frozen)
    usual = {"layer_decay": 0.75 if slow else 1.0, "freeze_fraction": 0.1 if model.weights and not labels else 0.0}
    open_ = {name: value for name, value in usual.items() if getattr(config, name) is None}
    return dataclasses.replace(config, lr=lr, warmup_fraction=warmup, **open_)


def resolve_length(sections: Sections, images: int, labels: tuple[str, ...] = ()) -> Sections:
    """The last Nones, once the number of steps is known: method rules and bookkeeping intervals."""
    train: TrainConfig = sections["train"]
    assert train.steps is not None and train.batch is not None
    steps, per_step = train.steps, train.batch * train.accumulate
    train = dataclasses.replace(
        train,
        epochs=train.epochs or round(steps * per_step / images, 3),
        log_every=train.log_every or max(1, min(10, steps // 100)),
        # Early stopping looks twice as often.
        evaluate_every=train.evaluate_every or max(1, math.ceil(steps / (20 if train.patience else 10))),
        save_every=train.save_every or max(1, min(500, math.ceil(steps / 10))),
    )
    model: ModelConfig = sections["model"]
    network = parse(model.backbone)
    facts = DatasetFacts(
        images,
        per_step,
        steps,
        batch_norm=network.capabilities.batch_norm,
        transformer=network.capabilities.transformer,
        pretrained=bool(model.weights),
        maskable=network.capabilities.maskable and model.attention in ("", "full") and not model.slices,
        axes=sections["data"].axes,
        view_px=sections["views"].global_px,
        unit_px=network.unit_px,
        dim=network.width,
        labels=labels,
        micro_batch=train.batch,
    )
    method = resolve_method(train.method, sections[train.method], facts)
    sections = sections | {"train": train, train.method: method}
    left = unresolved(sections)
    assert not left, left
    return sections
