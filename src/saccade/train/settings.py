"""The sections of a run's configuration. None means "decide from the data" (see train/resolve.py).

Each section with such settings has a resolved form, which narrows their types and adds nothing: a function that needs
a value asks for the resolved form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ALL_BUT_TEST = "all but test"
AUTO = "auto"
"""A method, backbone or recipe that train/auto.py chooses."""
NO_TILES: dict[str, Any] = {"mpp": 0.0, "tile_px": 0, "tissue": 0.0, "stream": False, "workers": 0}
"""What the settings of tiles are for images that are not cut out of slides."""


@dataclass(frozen=True)
class DataConfig:
    """The images a run learns from, and how they are decoded."""

    source: str = ""
    """DATA of the command line; manifest, label and group are its table and columns."""
    manifest: str = ""
    label: str = ""
    group: str = ""
    keep_na: bool = False
    """Classes and groups may be called n/a, NA or nan; by default these stand for no value."""
    split: str | None = None
    """Which part of the source to use, or ``all``; decided: everything but the test part."""
    grey: bool = False
    """Turn colour into luminance before anything else."""
    channels: int | None = None
    axes: int | None = None
    """2 for images, 3 for volumes; decided: what the data are."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Mean and standard deviation of each channel after scaling to 0..1; decided: those of ``model.weights`` where
    range and channels agree, else those of the images."""
    cache_px: int | None = None
    """Shorter side of the decoded images in pixels; decided: 1.5 times the input size, at most that of the images."""
    cache_mib: int = 8192
    """Above this size the cache is a memory-mapped file instead of memory."""
    intensity: Literal["", "range", "window", "robust"] | None = None
    """How volumes are scaled to 0..1: by their 8-bit range, by ``window``, or by quantiles of each volume (robust);
    decided: window for CT, range for 8 bits, else robust. Empty for images."""
    window: tuple[float, ...] | None = None
    """Low and high of ``intensity=window`` in HU; decided: -1000 and 1000."""
    size_mm: float = 0.0
    """Edge length in mm of the cube that each global view is cropped from; 0: the whole volume."""
    mpp: float | None = None
    """Tile resolution in µm per pixel; decided: 0.5, or that of the coarsest slide. 0: not slides."""
    tile_px: int | None = None
    """Side of the tiles of slides in pixels; decided: 256. 0: not slides."""
    tissue: float | None = None
    """Minimum tissue fraction of a tile; decided: 0.5."""
    slide_mpp: float = 0.0
    """Resolution of level 0 in µm per pixel for slides without one; 0: such slides are an error."""
    skip_unknown_mpp: bool = False
    """Leave out slides without a resolution instead of failing."""
    stream: bool | None = None
    """Read tiles from their slides when they are needed; decided: where they would take more than 1 GiB decoded."""
    workers: int | None = None
    """Processes that read tiles; decided: one per core, at most eight. 0: tiles are decoded once, or not slides."""
    max_bad: float = 0.05
    limit: int = 0
    """Number of images to learn from, stratified by class; smaller draws lie inside larger ones. 0: all."""
    limit_seed: int = 0
    validation: float = 0.0
    """Fraction of the images, in whole groups, for early stopping of a supervised run; a ``val`` split of the data
    overrides it. 0: none."""


@dataclass(frozen=True, kw_only=True)
class ResolvedData(DataConfig):
    """``DataConfig`` without None."""

    split: str
    channels: int
    axes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cache_px: int
    intensity: Literal["", "range", "window", "robust"]
    window: tuple[float, ...]
    mpp: float
    tile_px: int
    tissue: float
    stream: bool
    workers: int


@dataclass(frozen=True)
class ModelConfig:
    """The network. ``size_px`` is the size of a global crop and of an image in evaluation."""

    backbone: str = "vit_tiny_patch8"
    size_px: int | None = None
    weights: str = ""
    """Start from this model instead of random weights; empty: random."""
    drop_path: float | None = None
    """Stochastic depth of the student; decided: none."""
    positions: Literal["", "learned", "factorised", "sincos", "rotary", "conv", "none"] = ""
    """Empty: learned, or conv for grids of vectors."""
    norm: Literal["pre", "post"] = "pre"
    registers: int = 0
    layer_scale: float = 0.0
    attention: str = ""
    """full, window:K, neighbourhood:K, axial or strided:K; empty: as the name of the backbone says."""
    pool: Literal["", "cls", "mean"] = ""
    """Image vector of a ViT: class token or mean of the patches; empty: as the method trains it."""
    slices: int = 0
    """Number of slices of a volume for a network for images, whose vectors are averaged; 0: a network for volumes."""
    stem: str = ""
    """First layers of a CNN: imagenet, small or cifar; empty: by ``size_px``, or as in ``weights``."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """``ModelConfig`` without None."""

    size_px: int
    drop_path: float


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up and a cosine for the learning rate, and a cosine for weight decay."""

    lr: float | None = None
    """Peak learning rate at the batch of the run; decided: by method and backbone family, scaled with the batch."""
    lr_end: float = 1e-6
    warmup_fraction: float | None = None
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_norm: float = 3.0
    """Largest gradient norm; 0 switches clipping off."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer of the backbone to the one before; decided: 0.75 for transformers
    that start from weights, else 1."""
    freeze_fraction: float | None = None
    """Fraction of the run in which the backbone is frozen and only new layers learn (head warm-up); decided: 0.1 for
    runs without labels that start from weights, else 0."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimConfig):
    """``OptimConfig`` without None."""

    lr: float
    warmup_fraction: float
    layer_decay: float
    freeze_fraction: float


@dataclass(frozen=True)
class TrainConfig:
    """Length, speed and bookkeeping."""

    method: str = "dino"
    chosen: str = ""
    """What was chosen automatically, and why; empty where everything was named."""
    batch: int | None = None
    """Images per micro-batch, over all processes."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    steps: int | None = None
    """Optimiser steps; decided from ``epochs``. With ``minutes`` an estimate until the run has ended."""
    epochs: float | None = None
    """Passes over the images; decided: 100 unless steps or minutes are given."""
    minutes: float = 0.0
    """Length in minutes, from start-up to report; schedules follow the time used (train/clock.py). 0: not limited."""
    seed: int = 0
    device: str | None = None
    precision: Literal["bf16", "fp32"] | None = None
    log_every: int | None = None
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int = 0
    """Evaluations without improvement on the validation images after which a supervised run stops; 0: never."""
    checkpointing: bool = False
    """Activation checkpointing: keep one tensor per transformer block, compute the others again; less memory, more
    time."""
    on_collapse: Literal["warn", "stop", "repair"] | None = None
    """What happens at a fatal failure mode: a warning, the end of the run, or a return to an earlier checkpoint with
    the proposed change. Decided: repair for runs that start from weights, else warn."""
    choose: Literal["best", "last"] | None = None
    """Which checkpoint becomes the model; decided: best, by figures without labels, for runs without labels."""
    keep: int = 2
    """Number of checkpoints on disk; older ones are removed."""


@dataclass(frozen=True, kw_only=True)
class ResolvedTrain(TrainConfig):
    """``TrainConfig`` without None."""

    batch: int
    steps: int
    epochs: float
    device: str
    precision: Literal["bf16", "fp32"]
    log_every: int
    evaluate_every: int
    save_every: int
    on_collapse: Literal["warn", "stop", "repair"]
    choose: Literal["best", "last"]

    @property
    def images_per_step(self) -> int:
        """Images of one optimiser step, over all processes."""
        return self.batch * self.accumulate
