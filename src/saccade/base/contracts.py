"""The records that travel between the rooms of saccade, and the protocols the rooms keep.

Letters for shapes, used everywhere: B batch, V views, N tokens, D width, H heads, C channels,
T depth (z), Y rows, X columns, A axes of space (2 for images, 3 for volumes). This file imports no torch: tensors
appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Role = Literal["global", "local"]
Grid = tuple[int, ...]
"""Rows and columns of the tokens of an image; of volumes (slices, rows, columns)."""


@dataclass(frozen=True)
class Record:
    """What is known of one image without opening it.

    id      stable name inside the source (relative path, or ``train/000123`` for arrays)
    label   class name, or None
    group   patient, slide or source tile: what must never be split between train and test
    split   "train" | "val" | "test", or None where the source does not say
    extra   every other manifest column, as text
    """

    id: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One decoded image: ``pixels`` [C Y X], or a volume [C T Y X], in the file's own type and range.

    Nothing is rescaled or clipped here: uint8 stays uint8, 16-bit stays uint16, floats stay float32.
    A volume whose file says how it lies is in LPS order: x grows to the patient's left, y to the back, z to the head.

    spacing_um  (y, x) of an image
    mask        [Y X] or [T Y X]: inside or not (bool), or the number of each place's class (0 is background)
    spacing_mm  (z, y, x) of a volume; None where the file does not say
    affine      [4 4] float64 from voxel (x, y, z, 1) to millimetres in RAS, as NIfTI has it; None likewise
    modality    of a volume as DICOM spells it (CT, MR, PT), where the file says
    stored_as   where the file's own axes point, e.g. RAS or PIL; None where it does not say
    padding     lowest and highest value that the header calls padding, of a volume: not measured
    grid: the "pixels" are vectors of tiles that another network made, float32; the last channel is 1 where a tile is
    there and 0 where it is not (background, or beyond the slide). Grids are never resized.
    """

    pixels: np.ndarray
    record: Record
    spacing_um: tuple[float, ...] | None = None
    mask: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    modality: str | None = None
    stored_as: str | None = None
    padding: tuple[float, float] | None = None
    grid: bool = False


class Source(Protocol):
    """Images, or volumes, in a stable order. A Source never knows views, models or tensors."""

    name: str

    @property
    def axes(self) -> int:
        """2 when every sample is an image, 3 when every sample is a volume."""
        ...

    @property
    def records(self) -> Sequence[Record]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Decode one image. Raises DamagedFile, naming the file, when that is not possible."""
        ...

    def content_hash(self, index: int) -> str:
        """SHA-256 (hex) of what is stored: the encoded bytes of a file, the pixels of an array."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """How pixels become a network's input; saved with every model so that it is never guessed later.

    ``x = ((pixels - offset) / scale - mean) / std`` per channel, after conversion to ``channels``
    and resizing of the whole image to ``size_px``. offset and scale bring the file's range to 0..1
    (0 and 255 for 8-bit data; the observed range for 16-bit and float data).
    grey: the image is first turned to luminance (ITU-R BT.601) and repeated over the channels.

    axes       2: images; 3: volumes, of which ``size_px`` is the side of a cube
    intensity  of volumes, before all else (data/intensity.py): range, robust, or window with ``window`` = (low, high)
    size_mm    side of the cube that a volume is seen through, about its middle; 0: the whole volume
    grid: the input is a grid of vectors as in Sample; ``size_px`` counts tiles, and nothing is resized.
    """

    channels: int
    size_px: int
    offset: float
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grey: bool = False
    axes: int = 2
    intensity: str = ""
    window: tuple[float, ...] = ()
    size_mm: float = 0.0
    grid: bool = False

    @property
    def eight_bit(self) -> bool:
        """Whether the range is that of 8-bit files."""
        return (self.offset, self.scale) == (0.0, 255.0)


@dataclass
class Batch:
    """Decoded images of one step. ``pixels`` [B C Y X] or [B C T Y X], uint8 or float32, padded to the largest.

    sizes_px  [B A] long: the valid rows and columns (slices, rows and columns) of each image inside the padding
    indices   [B] long: position of each image in the source
    labels    [B] long: number of each image's class, where a run learns from labels
    offset, scale   bring the pixels to 0..1 (see InputSpec); eight bits travel as they are, a quarter of the bytes
    spacing_mm  [B A] float32, of volumes: size of the voxels held here, (z, y, x); (1, 1, 1) where it is unknown
    """

    pixels: Tensor
    sizes_px: Tensor
    indices: Tensor
    offset: float = 0.0
    scale: float = 1.0
    labels: Tensor | None = None
    spacing_mm: Tensor | None = None

    def to_unit_range(self, part: slice, device: torch.device) -> Tensor:
        """Some of the images as float32 in 0..1, on ``device``."""
        x = self.pixels[part].to(device, non_blocking=True).float()
        if self.offset:
            x = x - self.offset
        return x / self.scale if self.scale != 1.0 else x


@dataclass
class View:
    """One augmented crop of every image of a batch.

    pixels  [B C Y X] or [B C T Y X] float32, normalised as the InputSpec says
    box     [B 2A] float32, in pixels of the batch: top, left, height, width of the crop; of volumes front, top, left,
            depth, height, width
    labels  [B] long: number of each image's class, where a run learns from labels
    items   [B] long on the CPU: number of each image; what a method draws for an image depends on it (see seeds)
    """

    role: Role
    pixels: Tensor
    box: Tensor
    labels: Tensor | None = None
    items: Tensor | None = None


@dataclass(frozen=True)
class Hidden:
    """Patches that a network may not see: where [B N] bool, and the token [D] that stands for them."""

    where: Tensor
    token: Tensor


@dataclass
class Features:
    """What a backbone returns.

    cls     [B D] one vector an image: the class token of a ViT, the pooled map of a CNN
    tokens  [B N D] without class and register tokens
    grid    (rows, columns), or (slices, rows, columns), with a product of N
    """

    cls: Tensor
    tokens: Tensor
    grid: tuple[int, ...]


@dataclass
class StepOutput:
    """What a method returns: ``loss`` scalar float32 with gradient, ``logs`` plain 0-d tensors or floats."""

    loss: Tensor
    logs: Mapping[str, Tensor | float]


class Backbone(Protocol):
    """A network from pixels to Features; the concrete ones are in backbones/build.py."""

    name: str
    dim: int

    def __call__(self, pixels: Tensor) -> Features: ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``step`` counts optimiser steps done, ``total`` planned; ``epoch`` is a fraction.

    ``used`` is the fraction of its time that a run limited by minutes has used; None: steps are counted.
    """

    step: int
    total: int
    epoch: float
    epochs: float
    used: float | None = None

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / max(1, self.total)) if self.used is None else self.used
