"""What the page asks of a model about one image, kept so that a click costs one row: for ``web``, which has no torch.

A look is an image as one network gets it, with its patches in their order or shuffled, with positions or without. The
first question about a look runs the network once; queries, keys and values of all layers stay in a bounded memory.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from saccade.attention.image import Shown, input_size, shown
from saccade.attention.recorded_qkv import Compared
from saccade.attention.volume import kept, nifti_of
from saccade.attention.volume_map import SeenCube, seen_cube
from saccade.augment.views import plain_view
from saccade.base.contracts import Sample
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import fit_range
from saccade.errors import ModelError, UsageError
from saccade.features.embed_images import Decoded, OneImage, random_twin
from saccade.models.backbones.weights import LoadedModel, load_model
from saccade.models.nn.attention import AttentiveNetwork, has_attention

LOOKS_BYTES, MODELS_BYTES, LOOK_BYTES = 512 * 2**20, 2**30, 256 * 2**20
INPUT_PIXELS = {2: 2**23, 3: 2**24}  # of one image (2048 x 4096), or voxels of one volume (256 x 256 x 256)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Look:
    """What is looked at, and how.

    model      MODEL as on the command line; ``fresh``: the same network with random weights
    image      any name that stands for these pixels
    size_px    shorter side; None is the model's own
    shuffle    None, or the seed of an order of the patches
    positions  False leaves out what tells tokens where they are
    written    when (ns) the weights of MODEL were written, and their bytes: a model that was trained on is another one
    """

    model: str
    image: str
    fresh: bool = False
    size_px: int | None = None
    shuffle: int | None = None
    positions: bool = True
    written: tuple[int, int] | None = None


@dataclass(frozen=True)
class Seen:
    """What a network made of a look.

    picture    uint8 [3 Y X], of a volume [T Y X]: as the network got it
    grid       how many tokens there are along each axis
    order      [N]: the patch of the whole image that lies at each place; None unless shuffled
    compared   queries, keys and values, tokens with the prefix first; None for networks without attention
    vectors    [1 + N D] of length one: the image's own vector, then every token's; for networks without attention
    cube       where the picture of a volume lies in it
    unread     bool [Y X]: what of the picture the file of a slide could not give; None where all is there
    """

    name: str
    picture: np.ndarray
    grid: tuple[int, ...]
    prefix: int
    order: np.ndarray | None
    compared: Compared | None
    vectors: np.ndarray | None
    cube: SeenCube | None = None
    unread: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        kept = self.compared.nbytes if self.compared is not None else 0
        return self.picture.nbytes + kept + (self.vectors.nbytes if self.vectors is not None else 0)

    def about(self) -> dict[str, Any]:
        """What a page must know to ask on: how many layers, heads and tokens, and where the patches lie."""
        compared = self.compared
        return {
            "name": self.name,
            "kind": "similarity" if compared is None else "attention",
            "depth": 1 if compared is None else compared.depth,
            "heads": 1 if compared is None else compared.heads,
            "width": 0 if compared is None else int(compared.queries.shape[-1]),
            "prefix": self.prefix,
            "grid": list(self.grid),
            "size_px": list(self.picture.shape[-len(self.grid) :]),
            "seen": None if compared is None else _seen_counts(compared),
            "order": None if self.order is None else self.order.tolist(),
            "cube_mm": None if self.cube is None else {"start": list(self.cube.start_mm), "side": self.cube.side_mm},
        }

    def similarity(self, first: int, count: int) -> np.ndarray:
        """Cosines [1 R 1 + N] of tokens with the image's own vector and with every token; row 0 is that vector's."""
        assert self.vectors is not None
        if first < 0 or count < 1 or first + count > len(self.vectors):
            raise UsageError("no such token", got=first, expected=f"0 to {len(self.vectors) - 1}")
        return (self.vectors[first : first + count] @ self.vectors.T)[None]

    def map(self, token: int, *, layer: int, head: int | None, rollout: bool) -> np.ndarray:
        """[grid] of one token; ``head`` None: the mean of all. Of networks without attention cosines."""
        if self.compared is None:
            rows = self.similarity(token, 1)
        elif rollout:
            rows = self.compared.rollout(token, 1)[None]
        else:
            rows = self.compared.rows(layer, token, 1)
            if head is not None:
                rows = rows[head : head + 1]
        return rows[:, 0, self.prefix :].mean(axis=0).reshape(self.grid)


def _seen_counts(compared: Compared) -> list[list[int] | None]:
    """A layer: how many keys each query sees, or None where each sees all."""
    counts = [compared.seen_counts(layer) for layer in range(compared.depth)]
    return [None if one is None else one.tolist() for one in counts]


class Kept(Generic[K, V]):
    """The newest values, up to so many bytes of them; the newest one always."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        with self._lock:
            self._values[key] = (value, nbytes)
            while len(self._values) > 1 and sum(size for _, size in self._values.values()) > self.limit_bytes:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


class Explorer:
    """Models and looks, the newest ones. One network runs at a time; rows of what is kept need no turn."""

    def __init__(self, looks_bytes: int = LOOKS_BYTES, models_bytes: int = MODELS_BYTES):
        self._looks: Kept[Look, Seen] = Kept(looks_bytes)
        self._models: Kept[Hashable, LoadedModel] = Kept(models_bytes)
        self._turn = threading.Lock()

    def known(self, look: Look) -> Seen | None:
        """What is kept of a look, if it is; never waits for a network."""
        return self._looks.get(look)

    def see(self, look: Look, sample: Sample) -> Seen:
        """Run the network over an image or a volume unless this look is kept.

        Raises UsageError, ModelError or DataError where they do not fit each other.
        """
        with self._turn:
            found = self._looks.get(look)
            if found is None:
                found = self._look(look, sample)
                self._looks.put(look, found, found.nbytes)
            return found

    def model(self, look: Look, channels: int) -> LoadedModel:
        """The network of a look; loaded, or made, once."""
        channels = 1 if channels == 1 else 3  # only random weights care
        key = (look.model, look.fresh, look.positions, look.written, channels)
        found = self._models.get(key)
        if found is None:
            found = load_model(look.model, channels=channels)
            if look.fresh:
                found = random_twin(found, 0)
            if not look.positions:
                found = without_positions(found)
            size = sum(p.numel() * p.element_size() for p in found.backbone.parameters())
            self._models.put(key, found, size)
        return found

    def _look(self, look: Look, sample: Sample) -> Seen:
        loaded = self.model(look, sample.pixels.shape[0])
        with torch.inference_mode():
            seen, order, lies = _shown(loaded, look, sample)
            if has_attention(loaded.backbone):
                compared, grid = record(loaded.backbone, seen.x)
                return Seen(loaded.name, seen.image, grid, loaded.backbone.prefix, order, compared, None, lies)
            grid, vectors = _alike(loaded, seen.x)
            return Seen(loaded.name, seen.image, grid, 1, order, None, vectors, lies)


def _shown(loaded: LoadedModel, look: Look, sample: Sample) -> tuple[Shown, np.ndarray | None, SeenCube | None]:
    """The input, the order of its patches where they are shuffled, and where it lies in a volume."""
    axes = sample.pixels.ndim - 1
    if loaded.spec.axes != axes or loaded.spec.grid:
        words = {2: "images", 3: "volumes"}
        wanted = "grids of vectors" if loaded.spec.grid else words[loaded.spec.axes]
        raise ModelError(f"{loaded.name} is a model of {wanted}", got=f"{words[axes]}: {sample.record.id}")
    if axes == 3:
        if look.shuffle is not None:
            raise UsageError("the patches of volumes are not shuffled here", hint="ask the order question of an image")
        _check_size(loaded, (_cube_side(loaded, look.size_px),) * 3)
        seen, lies = cube(loaded, sample, look.size_px)
        return seen, None, lies
    # Before the picture is enlarged: of a long strip the shorter side decides, and the input can be gigabytes.
    _check_size(loaded, input_size(loaded, sample.pixels, look.size_px))
    seen = shown(loaded, sample.pixels, sample.record.id, look.size_px)
    if look.shuffle is None:
        return seen, None, None
    return (*shuffled(seen, loaded.backbone.stride_px, look.shuffle), None)


def _cube_side(loaded: LoadedModel, size_px: int | None) -> int:
    unit = max(loaded.backbone.stride_px, loaded.backbone.settings.unit_px)
    return max(unit, round((size_px or loaded.spec.size_px) / unit) * unit)


def cube(loaded: LoadedModel, sample: Sample, size_px: int | None) -> tuple[Shown, SeenCube]:
    """A volume through the cube that the model is used to: x [1 C S S S], and uint8 [T Y X] of its first channel."""
    side = _cube_side(loaded, size_px)
    spec = dataclasses.replace(loaded.spec, size_px=side)
    cache = Decoded(OneImage(sample), max_bad=0, report=None).at(side, spec.channels, spec)
    spec = fit_range(spec, cache.flat.dtype, cache.offset, cache.offset + cache.scale)
    batch = dataclasses.replace(cache, offset=spec.offset, scale=spec.scale).batch(np.arange(1))
    x = plain_view(batch, spec)
    grey = (x[0, 0] * spec.std[0] + spec.mean[0]) * 255
    return Shown(x, grey.round().clamp(0, 255).to(torch.uint8).numpy()), seen_cube(batch, spec)


def volume_file(seen: Seen, sample: Sample, values: np.ndarray, keep: float | None) -> bytes:
    """A map over the patches of a volume as packed NIfTI, at every voxel, as ``saccade attend`` writes it.

    keep   0 outside the patches that hold this share; None keeps all
    Raises UsageError where the look was not at a volume.
    """
    if seen.cube is None:
        raise UsageError("a map is kept as NIfTI of volumes only", got=sample.record.id, hint="save it as PNG or SVG")
    at_voxels = seen.cube.at_voxels(kept(values, keep), sample.pixels.shape[1:])
    return gzip.compress(nifti_of(at_voxels, sample).to_bytes())


def _alike(loaded: LoadedModel, pixels: torch.Tensor) -> tuple[tuple[int, ...], np.ndarray]:
    features = loaded.backbone(pixels)
    vectors = torch.cat([features.cls[:, None], features.tokens], dim=1)[0].float()
    return features.grid, torch.nn.functional.normalize(vectors, dim=-1).numpy()


def record(network: AttentiveNetwork, pixels: torch.Tensor) -> tuple[Compared, tuple[int, ...]]:
    """Queries, keys and values of all layers for one image or volume [1 C ...], and the grid of its patches."""
    layers, grid = network.projections(pixels, range(network.depth))
    stacked = [torch.stack([layer[part][0] for layer in layers]) for part in range(3)]
    queries, keys, values = (one.float().cpu().numpy() for one in stacked)
    return Compared(queries, keys, values, _key_masks(network, pixels, grid)), grid


def _key_masks(network: AttentiveNetwork, pixels: torch.Tensor, grid: tuple[int, ...]) -> list[np.ndarray | None]:
    """The keys that each query sees, bool [N N] a layer, None for all; layers with the same mask share one array."""
    count = network.prefix + math.prod(grid)
    masks: list[np.ndarray | None] = []
    for layer in range(network.depth):
        mask = network.key_mask(pixels, grid, layer, torch.arange(count, device=pixels.device))
        if mask is None:
            masks.append(None)
            continue
        # Of one image, alike in all heads; an array broadcast along the queries takes no memory for each.
        array = np.broadcast_to(mask.cpu().numpy().reshape(-1, mask.shape[-1]), (count, count))
        masks.append(next((known for known in masks if known is not None and np.array_equal(known, array)), array))
    return masks if any(mask is not None for mask in masks) else []


def without_positions(loaded: LoadedModel) -> LoadedModel:
    """The same weights without position embeddings. Raises UsageError where the network has none."""
    network = loaded.backbone
    if not has_attention(network) or not network.capabilities.has_positions:
        raise UsageError(f"{loaded.name} has no positions that could be removed", hint="choose a ViT")
    return dataclasses.replace(loaded, backbone=network.without_positions(), name=f"{loaded.name} without positions")


def shuffled(seen: Shown, patch_px: int, seed: int) -> tuple[Shown, np.ndarray]:
    """The image with its patches in another order, and which patch now lies where, [N].

    Raises UsageError where places of the network do not tile the image.
    """
    if any(side % patch_px for side in seen.x.shape[-2:]):
        raise UsageError("the places of this network do not tile the image: they cannot be shuffled")
    rows, columns = seen.x.shape[-2] // patch_px, seen.x.shape[-1] // patch_px
    order = numpy_generator("shuffle", seed).permutation(rows * columns)
    x = _reorder(seen.x[0].numpy(), patch_px, order)
    return Shown(torch.from_numpy(x)[None], _reorder(seen.image, patch_px, order)), order


def _reorder(pixels: np.ndarray, patch_px: int, order: np.ndarray) -> np.ndarray:
    channels, height, width = pixels.shape
    rows, columns = height // patch_px, width // patch_px
    cut = pixels.reshape(channels, rows, patch_px, columns, patch_px).transpose(1, 3, 0, 2, 4)
    cut = cut.reshape(rows * columns, channels, patch_px, patch_px)[order]
    cut = cut.reshape(rows, columns, channels, patch_px, patch_px).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(cut.reshape(channels, height, width))


def _check_size(loaded: LoadedModel, size: tuple[int, ...]) -> None:
    """Raise UsageError where an input of this size, or what is kept of it, would be too large."""
    network, most = loaded.backbone, INPUT_PIXELS[len(size)]
    if math.prod(size) > most:
        raise UsageError(
            "too many pixels to explore at this size",
            got=f"{' x '.join(map(str, size))} as the network would get it",
            expected=f"at most {most:,} pixels",
            hint="choose a smaller size, or cut out a part: a long strip is enlarged by its shorter side",
        )
    tokens = math.prod(side // network.stride_px for side in size)
    needed, what = 4 * tokens * network.dim, "vectors"
    if has_attention(network):
        tokens += network.prefix
        needed, what = 4 * 3 * network.depth * tokens * network.dim, "queries, keys and values"
    if needed > LOOK_BYTES:
        raise UsageError(
            "too many patches to explore at this size",
            got=f"{tokens:,} tokens: {needed / 2**20:,.0f} MiB of {what}",
            expected=f"at most {LOOK_BYTES / 2**20:,.0f} MiB",
            hint="choose a smaller size",
        )
