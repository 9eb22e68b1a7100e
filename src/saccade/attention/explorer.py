"""Models and images for the page's explorer: each image passes through the network once, then a click costs one row.

Queries, keys and values of all layers are kept in a bounded memory. ``web`` imports this module at the first question,
since it imports torch.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saccade.attention.image import ModelInput, input_size, to_model_input
from saccade.attention.recorded_qkv import RecordedQKV
from saccade.attention.volume import keep_mass, nifti_of
from saccade.attention.volume_map import SampledCube, sampled_cube
from saccade.augment.views import plain_view
from saccade.base.cache import LruCache
from saccade.base.contracts import Sample
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import fit_range
from saccade.errors import ModelError, UsageError, out_of_range
from saccade.features.embed_images import Decoded, OneImage, random_twin
from saccade.models.backbones.weights import LoadedModel, load_model
from saccade.models.nn.attention import AttentiveNetwork, has_attention

VIEWS_BYTES, MODELS_BYTES, VIEW_BYTES = 512 * 2**20, 2**30, 256 * 2**20
INPUT_PIXELS = {2: 2**23, 3: 2**24}  # of one image (2048 x 4096), or voxels of one volume (256 x 256 x 256)


@dataclass(frozen=True)
class ViewRequest:
    """One image, one model, and how the model is given the image.

    Parameters
    ----------
    model : str
        MODEL as on the command line.
    image : str
        Any name that identifies the pixels.
    fresh : bool
        Use the same network with random weights.
    size_px : int, optional
        Shorter side of the input; None is the size of the model's training.
    shuffle : int, optional
        Seed of a permutation of the patches; None keeps their order.
    positions : bool
        False removes the position embedding.
    written : tuple of int, optional
        Modification time (ns) and size of the weights file: a model that was trained further is another model.
    """

    model: str
    image: str
    fresh: bool = False
    size_px: int | None = None
    shuffle: int | None = None
    positions: bool = True
    written: tuple[int, int] | None = None


@dataclass(frozen=True)
class ModelView:
    """What a network computed for one request.

    Parameters
    ----------
    name : str
        The model.
    picture : ndarray
        uint8 [3 Y X], of a volume [T Y X]: the input of the network.
    grid : tuple of int
        Number of tokens along each axis.
    prefix : int
        Number of class and register tokens, which come first.
    order : ndarray, optional
        [N], the patch of the image at each position; None unless shuffled.
    qkv : RecordedQKV, optional
        Queries, keys and values; None for networks without attention.
    vectors : ndarray, optional
        [1 + N D] of unit length, the image vector and every token, of networks without attention.
    cube : SampledCube, optional
        Position of the input in a volume.
    unread : ndarray, optional
        bool [Y X], pixels that the slide file could not deliver; None where all are there.
    """

    name: str
    picture: np.ndarray
    grid: tuple[int, ...]
    prefix: int
    order: np.ndarray | None
    qkv: RecordedQKV | None
    vectors: np.ndarray | None
    cube: SampledCube | None = None
    unread: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        qkv_bytes = self.qkv.nbytes if self.qkv is not None else 0
        return self.picture.nbytes + qkv_bytes + (self.vectors.nbytes if self.vectors is not None else 0)

    def about(self) -> dict[str, Any]:
        """Number of layers, heads and tokens, and the layout of the patches, as the page needs them."""
        qkv = self.qkv
        return {
            "name": self.name,
            "kind": "similarity" if qkv is None else "attention",
            "depth": 1 if qkv is None else qkv.depth,
            "heads": 1 if qkv is None else qkv.heads,
            "width": 0 if qkv is None else int(qkv.queries.shape[-1]),
            "prefix": self.prefix,
            "grid": list(self.grid),
            "size_px": list(self.picture.shape[-len(self.grid) :]),
            "visible": None if qkv is None else _visible_counts(qkv),
            "order": None if self.order is None else self.order.tolist(),
            "cube_mm": None if self.cube is None else {"start": list(self.cube.start_mm), "side": self.cube.side_mm},
        }

    def similarity(self, first: int, count: int) -> np.ndarray:
        """Cosine similarities [1 R 1 + N] of tokens with the image vector and every token; row 0 is the image vector.

        Raises
        ------
        UsageError
            A token does not exist.
        """
        assert self.vectors is not None
        if first < 0 or count < 1 or first + count > len(self.vectors):
            raise out_of_range("token", first, len(self.vectors) - 1)
        return (self.vectors[first : first + count] @ self.vectors.T)[None]

    def map(self, token: int, *, layer: int, head: int | None, rollout: bool) -> np.ndarray:
        """The map [grid] of one token.

        Parameters
        ----------
        token : int
            The query; prefix tokens come first.
        layer : int
            0-based layer, for attention.
        head : int, optional
            None is the mean over heads.
        rollout : bool
            Attention rollout over all layers instead of one layer. Networks without attention give cosine similarities.
        """
        if self.qkv is None:
            rows = self.similarity(token, 1)
        elif rollout:
            rows = self.qkv.rollout(token, 1)[None]
        else:
            rows = self.qkv.rows(layer, token, 1)
            if head is not None:
                rows = rows[head : head + 1]
        return rows[:, 0, self.prefix :].mean(axis=0).reshape(self.grid)


def _visible_counts(qkv: RecordedQKV) -> list[list[int] | None]:
    """A layer: how many keys each query sees, or None where each sees all."""
    counts = [qkv.visible_counts(layer) for layer in range(qkv.depth)]
    return [None if count is None else count.tolist() for count in counts]


class Explorer:
    """Models and views, most recently used first. One network runs at a time; rows of cached views need no network."""

    def __init__(self, views_bytes: int = VIEWS_BYTES, models_bytes: int = MODELS_BYTES):
        self._views: LruCache[ViewRequest, ModelView] = LruCache(views_bytes)
        self._models: LruCache[Hashable, LoadedModel] = LruCache(models_bytes)
        self._turn = threading.Lock()

    def cached(self, request: ViewRequest) -> ModelView | None:
        """The view of a request if it is cached; never waits for a network."""
        return self._views.get(request)

    def view(self, request: ViewRequest, sample: Sample) -> ModelView:
        """Run the network over an image or a volume unless its view is cached.

        Raises
        ------
        UsageError, ModelError, DataError
            The image and the model do not fit each other.
        """
        with self._turn:
            view = self._views.get(request)
            if view is None:
                view = self._compute(request, sample)
                self._views.put(request, view, view.nbytes)
            return view

    def model(self, request: ViewRequest, channels: int) -> LoadedModel:
        """The network of a request, loaded or initialised once."""
        channels = 1 if channels == 1 else 3  # matters for random weights only
        key = (request.model, request.fresh, request.positions, request.written, channels)
        loaded = self._models.get(key)
        if loaded is None:
            loaded = load_model(request.model, channels=channels)
            if request.fresh:
                loaded = random_twin(loaded, 0)
            if not request.positions:
                loaded = without_positions(loaded)
            size = sum(p.numel() * p.element_size() for p in loaded.backbone.parameters())
            self._models.put(key, loaded, size)
        return loaded

    def _compute(self, request: ViewRequest, sample: Sample) -> ModelView:
        loaded = self.model(request, sample.pixels.shape[0])
        with torch.inference_mode():
            inputs, order, cube = _input_of(loaded, request, sample)
            if has_attention(loaded.backbone):
                qkv, grid = record(loaded.backbone, inputs.x)
                return ModelView(loaded.name, inputs.image, grid, loaded.backbone.prefix, order, qkv, None, cube)
            grid, vectors = _unit_vectors(loaded, inputs.x)
            return ModelView(loaded.name, inputs.image, grid, 1, order, None, vectors, cube)


def _input_of(
    loaded: LoadedModel, request: ViewRequest, sample: Sample
) -> tuple[ModelInput, np.ndarray | None, SampledCube | None]:
    """The input, the order of its patches where they are shuffled, and where it lies in a volume."""
    axes = sample.pixels.ndim - 1
    if loaded.spec.axes != axes or loaded.spec.grid:
        kinds = {2: "images", 3: "volumes"}
        expected = "grids of vectors" if loaded.spec.grid else kinds[loaded.spec.axes]
        raise ModelError(f"{loaded.name} is a model of {expected}", got=f"{kinds[axes]}: {sample.record.id}")
    if axes == 3:
        if request.shuffle is not None:
            raise UsageError("patch shuffling is only available for images", hint="choose an image")
        _check_size(loaded, (_cube_side(loaded, request.size_px),) * 3)
        inputs, cube_box = cube(loaded, sample, request.size_px)
        return inputs, None, cube_box
    # Checked before resizing: the input made from a long strip can take gigabytes.
    _check_size(loaded, input_size(loaded, sample.pixels, request.size_px))
    inputs = to_model_input(loaded, sample.pixels, sample.record.id, request.size_px)
    if request.shuffle is None:
        return inputs, None, None
    return (*shuffled(inputs, loaded.backbone.stride_px, request.shuffle), None)


def _cube_side(loaded: LoadedModel, size_px: int | None) -> int:
    unit = max(loaded.backbone.stride_px, loaded.backbone.settings.unit_px)
    return max(unit, round((size_px or loaded.spec.size_px) / unit) * unit)


def cube(loaded: LoadedModel, sample: Sample, size_px: int | None) -> tuple[ModelInput, SampledCube]:
    """The cube of a volume that the model was trained on: x [1 C S S S], and uint8 [T Y X] of its first channel."""
    side = _cube_side(loaded, size_px)
    spec = dataclasses.replace(loaded.spec, size_px=side)
    cache = Decoded(OneImage(sample), max_bad=0, report=None).at(side, spec.channels, spec)
    spec = fit_range(spec, cache.flat.dtype, cache.offset, cache.offset + cache.scale)
    batch = dataclasses.replace(cache, offset=spec.offset, scale=spec.scale).batch(np.arange(1))
    x = plain_view(batch, spec)
    grey = (x[0, 0] * spec.std[0] + spec.mean[0]) * 255
    return ModelInput(x, grey.round().clamp(0, 255).to(torch.uint8).numpy()), sampled_cube(batch, spec)


def volume_file(view: ModelView, sample: Sample, values: np.ndarray, keep: float | None) -> bytes:
    """A map over the patches of a volume as gzipped NIfTI at every voxel, as ``saccade attend`` writes it.

    Parameters
    ----------
    view : ModelView
        A view of a volume.
    sample : Sample
        The volume.
    values : ndarray
        [T' Y' X'].
    keep : float, optional
        Fraction of the mass: 0 outside the fewest patches that hold it. None keeps all.

    Raises
    ------
    UsageError
        The view is of an image.
    """
    if view.cube is None:
        raise UsageError("NIfTI files are written of volumes only", got=sample.record.id, hint="save it as PNG or SVG")
    at_voxels = view.cube.at_voxels(keep_mass(values, keep), sample.pixels.shape[1:])
    return gzip.compress(nifti_of(at_voxels, sample).to_bytes())


def _unit_vectors(loaded: LoadedModel, pixels: torch.Tensor) -> tuple[tuple[int, ...], np.ndarray]:
    features = loaded.backbone(pixels)
    vectors = torch.cat([features.cls[:, None], features.tokens], dim=1)[0].float()
    return features.grid, torch.nn.functional.normalize(vectors, dim=-1).numpy()


def record(network: AttentiveNetwork, pixels: torch.Tensor) -> tuple[RecordedQKV, tuple[int, ...]]:
    """Queries, keys and values of all layers for one image or volume.

    Parameters
    ----------
    network : AttentiveNetwork
        In eval mode.
    pixels : Tensor
        [1 C ...].

    Returns
    -------
    tuple
        The RecordedQKV, and the grid of the patches.
    """
    layers, grid = network.projections(pixels, range(network.depth))
    stacked = [torch.stack([layer[part][0] for layer in layers]) for part in range(3)]
    queries, keys, values = (array.float().cpu().numpy() for array in stacked)
    return RecordedQKV(queries, keys, values, _visible_keys(network, pixels, grid)), grid


def _visible_keys(network: AttentiveNetwork, pixels: torch.Tensor, grid: tuple[int, ...]) -> list[np.ndarray | None]:
    """The keys that each query sees, bool [N N] a layer, None for all; layers with the same mask share one array."""
    count = network.prefix + math.prod(grid)
    masks: list[np.ndarray | None] = []
    for layer in range(network.depth):
        mask = network.key_mask(pixels, grid, layer, torch.arange(count, device=pixels.device))
        if mask is None:
            masks.append(None)
            continue
        # The same in all heads of one image; an array broadcast along the queries takes no memory for each.
        array = np.broadcast_to(mask.cpu().numpy().reshape(-1, mask.shape[-1]), (count, count))
        masks.append(next((shared for shared in masks if shared is not None and np.array_equal(shared, array)), array))
    return masks if any(mask is not None for mask in masks) else []


def without_positions(loaded: LoadedModel) -> LoadedModel:
    """The same weights without the position embedding.

    Raises
    ------
    UsageError
        The network has none.
    """
    network = loaded.backbone
    if not has_attention(network) or not network.capabilities.has_positions:
        raise UsageError(f"{loaded.name} has no position embedding to remove", hint="choose a ViT")
    return dataclasses.replace(loaded, backbone=network.without_positions(), name=f"{loaded.name} without positions")


def shuffled(inputs: ModelInput, patch_px: int, seed: int) -> tuple[ModelInput, np.ndarray]:
    """The input with its patches permuted, and [N], the patch that is now at each position.

    Raises
    ------
    UsageError
        The cells of the network do not tile the image.
    """
    if any(side % patch_px for side in inputs.x.shape[-2:]):
        raise UsageError("the cells of this network do not tile the image: they cannot be shuffled")
    rows, columns = inputs.x.shape[-2] // patch_px, inputs.x.shape[-1] // patch_px
    order = numpy_generator("shuffle", seed).permutation(rows * columns)
    x = _reorder(inputs.x[0].numpy(), patch_px, order)
    return ModelInput(torch.from_numpy(x)[None], _reorder(inputs.image, patch_px, order)), order


def _reorder(pixels: np.ndarray, patch_px: int, order: np.ndarray) -> np.ndarray:
    channels, height, width = pixels.shape
    rows, columns = height // patch_px, width // patch_px
    cut = pixels.reshape(channels, rows, patch_px, columns, patch_px).transpose(1, 3, 0, 2, 4)
    cut = cut.reshape(rows * columns, channels, patch_px, patch_px)[order]
    cut = cut.reshape(rows, columns, channels, patch_px, patch_px).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(cut.reshape(channels, height, width))


def _check_size(loaded: LoadedModel, size: tuple[int, ...]) -> None:
    """Raise UsageError where an input of this size, or what would be cached of it, is too large."""
    network, most = loaded.backbone, INPUT_PIXELS[len(size)]
    if math.prod(size) > most:
        raise UsageError(
            "too many pixels to explore at this size",
            got=f"{' x '.join(map(str, size))} as input of the network",
            expected=f"at most {most:,} pixels",
            hint="choose a smaller size, or crop the image: the shorter side of a long strip is enlarged",
        )
    tokens = math.prod(side // network.stride_px for side in size)
    needed, what = 4 * tokens * network.dim, "vectors"
    if has_attention(network):
        tokens += network.prefix
        needed, what = 4 * 3 * network.depth * tokens * network.dim, "queries, keys and values"
    if needed > VIEW_BYTES:
        raise UsageError(
            "too many patches to explore at this size",
            got=f"{tokens:,} tokens: {needed / 2**20:,.0f} MiB of {what}",
            expected=f"at most {VIEW_BYTES / 2**20:,.0f} MiB",
            hint="choose a smaller size",
        )
