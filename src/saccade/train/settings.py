"""The sections of a run's configuration. None means "decide from the data" (see train/resolve.py).

Each section with such settings has a resolved form, which narrows their types and adds nothing: a function that needs
a value asks for the resolved form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ALL_BUT_TEST = "all but test"
NO_TILES: dict[str, Any] = {"mpp": 0.0, "tile_px": 0, "tissue": 0.0, "stream": False, "workers": 0}
"""What the settings of tiles are for images that are not cut out of slides."""


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from, and how they are held."""

    source: str = ""
    """What was given as DATA; the manifest and its columns beside it, where named."""
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
    """Each channel is normalised with these, after scaling to 0..1; decided: as ``model.weights`` are used to, where
    range and channels agree, else those of the images."""
    cache_px: int | None = None
    """Shorter side of the decoded images that are kept; decided: 1.5 times the largest crop."""
    cache_mib: int = 8192
    """Above this size the cache is a memory-mapped file instead of memory."""
    intensity: Literal["", "range", "window", "robust"] | None = None
    """How volumes are brought to 0..1: as 8 bits are, by ``window``, or by quantiles of each; decided: window for CT,
    range for 8 bits, else robust. Empty for images."""
    window: tuple[float, ...] | None = None
    """Low and high of ``intensity=window`` in HU; decided: -1000 and 1000."""
    size_mm: float = 0.0
    """Side of the cube of a volume that a global view is taken from; 0: the whole volume."""
    mpp: float | None = None
    """Micrometres a pixel of the tiles of slides; decided: 0.5, or the coarsest slide's own. 0: these are no slides."""
    tile_px: int | None = None
    """Side of the tiles of slides in pixels; decided: 256. 0: these are no slides."""
    tissue: float | None = None
    """Least share of usable tissue in a tile; decided: 0.5."""
    slide_mpp: float = 0.0
    """Micrometres a pixel of level 0, for slides that do not say; 0: then it is an error."""
    stream: bool | None = None
    """Read tiles from their slides when they are wanted; decided: where they would take more than 1 GiB decoded."""
    workers: int | None = None
    """Processes that read tiles; decided: one a core, at most eight. 0: tiles are decoded once, or these are images."""
    max_bad: float = 0.05
    limit: int = 0
    """Learn from so many images only, drawn class by class; smaller draws lie inside larger ones. 0: all."""
    limit_seed: int = 0
    validation: float = 0.0
    """Share of the images, whole groups, that a supervised run stops early by; a ``val`` split goes before. 0: none."""


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
    """The image's vector of a ViT: its class token or the mean of its patches; empty: as the method learns it."""
    slices: int = 0
    """Show so many slices of a volume to a network for images, whose vectors are averaged; 0: a network for volumes."""
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
    """Peak rate at the run's own batch; decided: by backbone family, scaled with the batch."""
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
    """Share of the run in which the backbone rests and only what is new learns (head warm-up); decided: 0.1 for runs
    without labels that start from weights, else 0."""


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
    batch: int | None = None
    """Images a micro-batch, over all processes."""
    accumulate: int = 1
    """Micro-batches an optimiser step."""
    steps: int | None = None
    """Optimiser steps; decided from ``epochs``, or from ``minutes`` by a short measurement."""
    epochs: float | None = None
    """Passes over the images; decided: 100 unless steps or minutes are given."""
    minutes: float = 0.0
    """Length by the clock; 0: not limited by time. Turned into steps once, so a resumed run ends alike."""
    seed: int = 0
    device: str | None = None
    precision: Literal["bf16", "fp32"] | None = None
    log_every: int | None = None
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int = 0
    """Evaluations without a better validation after which a supervised run ends; 0: it runs to its end."""
    checkpointing: bool = False
    """Keep one tensor a block of a transformer for the gradients, compute the others again: less memory, more time."""
    on_collapse: Literal["warn", "stop", "repair"] | None = None
    """When the doctor finds that a run learns nothing any more: say so, end it, or go back and change what is wrong.
    Decided: repair for runs that start from weights, else warn."""
    choose: Literal["best", "last"] | None = None
    """Which checkpoint becomes the model; decided: best, by figures without labels, for runs without labels."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""


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
