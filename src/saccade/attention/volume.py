"""Attention over one volume (``saccade attend``): three planes as a picture, and a NIfTI aligned with the volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from saccade.attention.maps import AttentionMap
from saccade.attention.options import AttendOptions, check_options, facts_of, numbers_of, words_of
from saccade.attention.volume_map import VolumeMap, volume_map
from saccade.base import frames
from saccade.base.contracts import InputSpec, Sample
from saccade.base.files import write_bytes, write_file, write_text
from saccade.data.cache.image_cache import ImageCache, build_cache, input_spec
from saccade.data.formats import has_suffix
from saccade.data.open import open_source
from saccade.data.sources.masks import masks_for
from saccade.data.volumes.intensity import decide_intensity, intensity_of, to_unit
from saccade.errors import ModelError, UsageError
from saccade.models.backbones.weights import LoadedModel, load_model
from saccade.models.nn.attention import has_attention
from saccade.viz.orthoview import Scene, planes_panel
from saccade.viz.patch_maps import ColourScale, colour_scales, jaccard, query_text, threshold_mask
from saccade.viz.save import map_csv, save_by_suffix

RANDOM_PX = 64  # side of the input cube for random weights


def is_volume(path: str | Path) -> bool:
    """Whether a path is a volume: by suffix, or for a folder by its contents. A TIFF counts as an image."""
    path = Path(path)
    # A TIFF stack cannot be distinguished from an image: it needs a folder of its own, or NIfTI.
    if not path.exists() or has_suffix(path.name, "image"):
        return False
    return open_source(path).axes == 3


def affine_of(sample: Sample) -> np.ndarray:
    """Voxel (x, y, z) of a volume to millimetres in RAS; the spacing alone where the file has no orientation."""
    spacing = sample.spacing_mm or (1.0, 1.0, 1.0)
    return np.diag([*spacing[::-1], 1.0]) if sample.affine is None else sample.affine


def keep_mass(values: np.ndarray, keep: float | None) -> np.ndarray:
    """A map [T' Y' X'] with 0 outside the smallest set of patches that holds the share ``keep``; None keeps all."""
    return values if keep is None else np.where(threshold_mask(values, keep), values, 0)


def nifti_of(values: np.ndarray, sample: Sample) -> nibabel.Nifti1Image:
    """A map [T Y X] at every voxel of a volume, with the affine of the volume."""
    return nibabel.Nifti1Image(values.transpose(2, 1, 0), affine_of(sample))


@dataclasses.dataclass(frozen=True)
class VolumeAttention(frames.Tabular):
    """One volume with its attention map and Jaccard indices."""

    sample: Sample
    unit: np.ndarray
    found: VolumeMap
    options: AttendOptions
    model: str
    jaccard: dict[str, float]

    @property
    def amap(self) -> AttentionMap:
        return self.found.amap

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.sample.spacing_mm or (1.0, 1.0, 1.0)

    @property
    def affine(self) -> np.ndarray:
        return affine_of(self.sample)

    @property
    def point(self) -> tuple[int, int, int]:
        """The voxel (z, y, x) that the planes pass through: the query, or the largest value of the map."""
        if self.options.query != "cls":
            z, y, x = (int(at) for at in numbers_of(self.options.query, 3))
            return z, y, x
        z, y, x = (int(at) for at in np.unravel_index(self.map().argmax(), self.unit.shape))
        return z, y, x

    def map(self, head: int | None = None) -> np.ndarray:
        """[T Y X], the map of one head at every voxel; None is the head asked for, else the mean."""
        option = self.options.head
        if head is None and option not in ("all", "mean"):
            head = int(option)
        values = self.amap.mean if head is None else self.amap.values[head]
        return self.found.cube.at_voxels(keep_mass(values, self.options.threshold), self.unit.shape)

    def world(self) -> tuple[float, float, float]:
        """The point in millimetres, RAS."""
        x, y, z = (self.affine @ [*self.point[::-1], 1.0])[:3].tolist()
        return x, y, z

    def text(self) -> str:
        """The result as text for a terminal."""
        amap, point = self.amap, self.point
        where = "the query" if self.options.query != "cls" else "the largest value"
        lines = words_of(self.model, amap, self.options)
        position = f"planes through {where}: voxel z, y, x = {point[0]}, {point[1]}, {point[2]}"
        if self.sample.affine is not None:
            position += " (x, y, z = {:.1f}, {:.1f}, {:.1f} mm, RAS)".format(*self.world())
        lines.append(position)
        lines += [f"Jaccard index with the mask, {name}: {value:.3f}" for name, value in self.jaccard.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return facts_of(self.model, self.amap, self.options, self.jaccard) | {
            "voxel_zyx": list(self.point),
            "world_mm": list(self.world()) if self.sample.affine is not None else None,
            "cube_mm": {"start_zyx": list(self.found.cube.start_mm), "side": self.found.cube.side_mm},
        }

    def save(self, path: Path) -> Path:
        """Write PNG (three planes), NIfTI (the map at every voxel, affine of the volume) or CSV (one line per patch).

        Raises
        ------
        UsageError
            The suffix is none of these.
        """
        writers: dict[str, Callable[[Path], object]] = {
            ".png": lambda target: write_bytes(target, self._panel()),
            ".nii.gz": self._save_nifti,
            ".nii": self._save_nifti,
            ".csv": lambda target: write_text(target, map_csv(self.amap.values)),
        }
        return save_by_suffix(path, writers, "picture format of a volume")

    def _save_nifti(self, path: Path) -> None:
        write_file(path, lambda target: nibabel.save(nifti_of(self.map(), self.sample), target))

    def _panel(self) -> bytes:
        heads = range(len(self.amap.values)) if self.options.head == "all" else ()
        scene = Scene(
            self.unit, self.point, self.spacing_mm, self.sample.affine is not None, self.found.box(self.unit.shape)
        )
        [scale] = colour_scales([self.amap], stretch=self.options.stretch)
        return panel(scene, self.amap, self.map(), {head: self.map(head) for head in heads}, scale)

    def frame_columns(self) -> dict[str, np.ndarray]:
        """One row per head and patch: head, slice, row, column, weight."""
        head, z, y, x = np.indices(self.amap.values.shape).reshape(4, -1)
        return {"head": head, "slice": z, "row": y, "column": x, "weight": self.amap.values.ravel()}

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())


def panel(
    scene: Scene, amap: AttentionMap, mean: np.ndarray, heads: dict[int, np.ndarray], scale: ColourScale
) -> bytes:
    """PNG: the volume, the mean map, and every given head, [T Y X] each, on one colour scale."""
    several = len(heads) > 1
    maps = {f"mean of {len(heads)} heads" if several else amap.kind: mean}
    maps |= {f"head {head}": values for head, values in heads.items() if several}
    captions = [amap.largest(values) for values in maps.values()]
    return planes_panel(scene, maps, [query_text(amap), *captions], scale)


def attend(model: str | Path, path: str | Path, options: AttendOptions) -> VolumeAttention:
    """The attention map of one query over one volume: a file, or a folder or archive with one series.

    Raises
    ------
    UsageError, ModelError, DataError
        The options, the model and the volume do not fit each other.
    """
    source = open_source(path)
    if len(source) != 1:
        raise UsageError(
            "attend takes one volume", got=f"{len(source)} in {path}", hint="give the file or folder of one"
        )
    sample = source.read(0)
    loaded = load_model(model, channels=sample.pixels.shape[0], size_px=RANDOM_PX, axes=3)
    spec = _spec(loaded, options.size_px)
    how = intensity_of(spec) or decide_intensity(source)
    cache = build_cache(
        source, cache_px=spec.size_px, channels=spec.channels, max_bad=0.0, intensity=how, size_mm=spec.size_mm
    )
    if loaded.name.startswith("random:"):
        spec = input_spec(cache, spec.size_px, grey=False)
    check_options(options, loaded)
    query = _millimetres(options.query, sample)
    layer = -1 if options.layer is None else options.layer
    volume = volume_map(
        loaded.backbone, cache.batch(np.array([0])), spec, query=query, layer=layer, rollout=options.rollout
    )
    unit = _for_the_eye(to_unit(sample.pixels, how, sample.record.id, sample.padding))
    scores = {} if options.mask is None else _mask_agreement(volume, sample, options, Path(path))
    return VolumeAttention(sample, unit, volume, options, loaded.name, scores)


def _spec(loaded: LoadedModel, size_px: int | None) -> InputSpec:
    spec = loaded.spec
    if spec.axes != 3:
        raise ModelError(f"{loaded.name} is a model of images", got="a volume", hint="pretrain a model on volumes")
    unit = loaded.backbone.settings.unit_px
    if size_px is not None and size_px % unit:
        raise UsageError("--size does not fit the network", got=size_px, expected=f"a multiple of {unit}")
    return dataclasses.replace(spec, size_px=size_px or spec.size_px)


def _for_the_eye(unit: np.ndarray) -> np.ndarray:
    """[T Y X] in 0..1 of the first channel, or the mean of three."""
    scale = 255.0 if unit.dtype == np.uint8 else 65535.0
    grey = unit.mean(axis=0) if len(unit) == 3 else unit[0]
    return (grey / scale).astype(np.float32)


def _millimetres(query: str, sample: Sample) -> Any:
    """The centre of the queried voxel in millimetres from the volume's corner, or ``cls``."""
    if query == "cls":
        return query
    shape, spacing = sample.pixels.shape[1:], sample.spacing_mm or (1.0, 1.0, 1.0)
    point = numbers_of(query, 3)
    if not all(0 <= at < side for at, side in zip(point, shape)):
        expected = ", ".join(f"{name} 0..{side - 1}" for name, side in zip("zyx", shape))
        raise UsageError("the query lies outside the volume", got=query, expected=expected)
    return tuple((int(at) + 0.5) * mm for at, mm in zip(point, spacing))


def _mask_agreement(volume: VolumeMap, sample: Sample, options: AttendOptions, path: Path) -> dict[str, float]:
    """Jaccard index of the thresholded maps with a true mask: of the mean map, and of the best head."""
    assert options.mask is not None
    truth = open_source(masks_for(path, options.mask)[0]).read(0).pixels[0] > 0
    if truth.shape != sample.pixels.shape[1:]:
        raise UsageError("mask and volume differ in shape", got=truth.shape, expected=sample.pixels.shape[1:])
    keep = 0.6 if options.threshold is None else options.threshold

    def score(values: np.ndarray) -> float:
        chosen = threshold_mask(values, keep).astype(np.float32)
        return jaccard(volume.cube.at_voxels(chosen, truth.shape) > 0.5, truth)

    heads = [score(head) for head in volume.amap.values]
    scores = {"mean of heads": score(volume.amap.mean)}
    return scores | ({f"best head ({int(np.argmax(heads))})": max(heads)} if len(heads) > 1 else {})


class CachedVolume:
    """Class-token attention over a decoded volume, or similarity to its middle patch, for a report."""

    def __init__(self, model: LoadedModel, cache: ImageCache, index: int):
        network = model.backbone.cpu().eval()
        spacing = (1.0, 1.0, 1.0) if cache.spacing_mm is None else tuple(float(v) for v in cache.spacing_mm[index])
        shape = cache.image(index).shape[1:]
        middle: Any = tuple(side * mm / 2 for side, mm in zip(shape, spacing))
        query: Any = "cls" if has_attention(network) else middle
        self.attention = volume_map(network, cache.batch(np.array([index])), model.spec, query=query)
        unit = (cache.image(index).astype(np.float32) - cache.offset) / cache.scale
        self.volume = np.clip(unit.mean(axis=0) if len(unit) == 3 else unit[0], 0, 1)
        self.spacing = (spacing[0], spacing[1], spacing[2])

    def picture(self, scale: ColourScale) -> bytes:
        """PNG with three planes through the largest value."""
        shape = self.volume.shape
        mean = self.attention.cube.at_voxels(self.attention.amap.mean, shape)
        z, y, x = (int(at) for at in np.unravel_index(mean.argmax(), shape))
        scene = Scene(self.volume, (z, y, x), self.spacing, False, self.attention.box(shape))
        return panel(scene, self.attention.amap, mean, {}, scale)
