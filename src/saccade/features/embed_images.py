"""Features of a frozen backbone: one vector per image of a source, in a table (see table.py).

All models of a comparison get the same decoded images; a source is decoded once per input size.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch

from saccade import runtime
from saccade.augment.views import plain_view
from saccade.base.contracts import InputSpec, Record, Sample, Source
from saccade.data.cache.image_cache import ImageCache, build_cache, fit_range, input_spec
from saccade.data.probe import typical_px, usual_channels
from saccade.data.volumes.intensity import intensity_of
from saccade.errors import ModelError
from saccade.features.baselines import histogram_features, pixel_features
from saccade.features.table import COLUMNS, FEATURES, FeatureTable, table_of_records
from saccade.models.backbones.build import rebuild
from saccade.models.backbones.weights import LoadedModel

PIXELS, HISTOGRAM, MEAN = "pixels", "colour histogram", "mean of the vectors"
Report = Callable[[int, int], None]
View = Callable[[np.ndarray], torch.Tensor]  # indices of images -> their pixels [B C S S], normalised


def embed_cached(
    network: torch.nn.Module,
    cache: ImageCache,
    indices: np.ndarray,
    spec: InputSpec,
    *,
    device: torch.device,
    precision: str,
    batch: int = 128,
    report: Report | None = None,
) -> np.ndarray:
    """Features [N D] float32 of the images at ``indices``: the whole image, evaluation mode."""
    return predict_view(
        full_view(cache, spec),
        network,
        lambda x: network(x).cls,
        indices,
        device=device,
        precision=precision,
        batch=batch,
        report=report,
    )


def full_view(cache: ImageCache, spec: InputSpec) -> View:
    """Every image uncropped, at the input size and normalization of the network."""
    return lambda items: plain_view(cache.batch(items), spec)


@torch.no_grad()
def predict_view(
    view: View,
    network: torch.nn.Module,
    output: Callable[[torch.Tensor], torch.Tensor],
    indices: np.ndarray,
    *,
    device: torch.device,
    precision: str,
    batch: int = 128,
    report: Report | None = None,
) -> np.ndarray:
    """``output`` of the images at ``indices``, float32 [N D], with ``network`` in evaluation mode."""
    was_training = network.training
    network.eval()
    rows = []
    for start in range(0, len(indices), batch):
        pixels = view(indices[start : start + batch]).to(device)
        with runtime.autocast(device, precision):
            rows.append(output(pixels).float().cpu())
        if report is not None:
            report(min(start + batch, len(indices)), len(indices))
    network.train(was_training)
    return torch.cat(rows).numpy()


def _table(cache: ImageCache, features: np.ndarray, model: str, about: dict[str, object]) -> FeatureTable:
    extras = {name: [r.extra.get(name) or None for r in cache.records] for name in _extra_columns(cache)}
    table = table_of_records(cache.records, features, cache.hashes, model, about)
    return dataclasses.replace(table, extras=extras)


def _extra_columns(cache: ImageCache) -> list[str]:
    """Further columns of the manifest, besides those of every table."""
    return sorted({name for record in cache.records for name in record.extra} - {*COLUMNS, FEATURES})


def random_twin(model: LoadedModel, seed: int) -> LoadedModel:
    """The same network and input with fresh random weights: the baseline that pretraining must beat."""
    return dataclasses.replace(model, backbone=rebuild(model.backbone, seed=seed), name="random weights")


class Decoded:
    """A source, decoded once for each requested size and number of channels."""

    def __init__(self, source: Source, *, max_bad: float, report: Report | None):
        self.source, self.max_bad, self.report = source, max_bad, report
        self._caches: dict[tuple[object, ...], ImageCache] = {}

    @cached_property
    def channels(self) -> int:
        """The most frequent number of channels."""
        return usual_channels(self.source)

    @cached_property
    def typical_px(self) -> int:
        """Median shorter side of the first images."""
        return typical_px(self.source)

    def at(self, size_px: int, channels: int | None = None, like: InputSpec | None = None) -> ImageCache:
        """The cache of one size; intensity and scale of volumes as in the input ``like`` (None: from the data)."""
        channels = channels or self.channels
        intensity, size_mm = (intensity_of(like), like.size_mm) if like is not None else (None, 0.0)
        key = (size_px, channels, intensity, size_mm)
        if key not in self._caches:
            self._caches[key] = build_cache(
                self.source,
                cache_px=size_px,
                channels=channels,
                max_bad=self.max_bad,
                report=self.report,
                intensity=intensity,
                size_mm=size_mm,
            )
        return self._caches[key]


def fit_input(model: LoadedModel, decoded: Decoded) -> tuple[LoadedModel, str | None]:
    """The model with its input range adapted to these data, and a message where that differs from its training.

    Random weights use range and statistics of the data. A model of 8-bit images uses the range of deeper ones, and
    the other way round: 16-bit values divided by 255 would silently saturate.
    """
    spec = model.spec
    if spec.axes != decoded.source.axes:
        words = {2: "images", 3: "volumes"}
        raise ModelError(
            f"{model.name} is a model of {words[spec.axes]}", got=f"{words[decoded.source.axes]}: {decoded.source.name}"
        )
    cache = decoded.at(spec.size_px, spec.channels, spec)
    if model.name.startswith("random:"):
        return dataclasses.replace(model, spec=input_spec(cache, spec.size_px, grey=spec.grey)), None
    fitted = fit_range(spec, cache.flat.dtype, cache.offset, cache.offset + cache.scale)
    if fitted == spec:
        return model, None
    message = (
        f"{model.name} was trained on {'8-bit' if spec.eight_bit else 'deeper than 8-bit'} images and these are "
        f"{cache.flat.dtype}: they are scaled by their own range, {cache.offset:g} to {cache.offset + cache.scale:g}"
    )
    return dataclasses.replace(model, spec=fitted), message


def embed_model(
    model: LoadedModel,
    decoded: Decoded,
    *,
    device: torch.device,
    precision: str,
    grey: bool = False,
    report: Report | None = None,
) -> FeatureTable:
    """The feature table of one model. ``grey``: convert the images to luminance."""
    spec = model.spec
    cache = decoded.at(spec.size_px, spec.channels, spec)
    cache = dataclasses.replace(cache, offset=spec.offset, scale=spec.scale)
    spec = dataclasses.replace(spec, grey=spec.grey or grey)
    features = embed_cached(
        model.backbone.to(device),
        cache,
        np.arange(len(cache)),
        spec,
        device=device,
        precision=precision,
        report=report,
    )
    return _table(cache, features, model.name, {"spec": dataclasses.asdict(spec), "precision": precision})


class OneImage:
    """A source of one decoded image or volume; satisfies contracts.Source."""

    def __init__(self, sample: Sample):
        self.sample, self.name, self.records = sample, sample.record.id, [sample.record]
        self.axes = sample.pixels.ndim - 1

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Sample:
        return self.sample

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(self.sample.pixels.tobytes()).hexdigest()


def embed_one(
    model: LoadedModel, spec: InputSpec, sample: Sample, *, device: torch.device, precision: str
) -> np.ndarray:
    """The vector [D] of one image or volume, embedded as those of a table with the input ``spec``."""
    source = OneImage(sample)
    if source.axes != spec.axes:
        words = {2: "an image", 3: "a volume"}
        raise ModelError(f"{model.name} takes {words[spec.axes]}", got=f"{words[source.axes]}: {source.name}")
    decoded = Decoded(source, max_bad=0, report=None)
    cache = decoded.at(spec.size_px, spec.channels, spec)
    spec = fit_range(spec, cache.flat.dtype, cache.offset, cache.offset + cache.scale)
    cache = dataclasses.replace(cache, offset=spec.offset, scale=spec.scale)
    network = model.backbone.to(device)
    return embed_cached(network, cache, np.arange(1), spec, device=device, precision=precision)[0]


def _mean_vectors(cache: ImageCache) -> np.ndarray:
    """[N D] of grids [N D+1 Y X]: the mean over the positions that are present according to the last channel."""
    means = []
    for start in range(0, len(cache), 512):
        grids = cache.batch(np.arange(start, min(start + 512, len(cache)))).pixels.float()
        present = (grids[:, -1:] > 0.5).float()
        means.append(((grids[:, :-1] * present).sum((2, 3)) / present.sum((2, 3)).clamp(min=1)).numpy())
    return np.concatenate(means)


def embed_baselines(decoded: Decoded, size_px: int, *, grey: bool) -> Mapping[str, FeatureTable]:
    """Raw pixels and color (or grey) histogram of the same images at the same size; for grids the mean vector."""
    cache = decoded.at(size_px)
    if cache.grid:
        return {MEAN: _table(cache, _mean_vectors(cache), MEAN, {})}
    spec = dataclasses.replace(
        input_spec(cache, size_px, grey=grey), mean=(0.0,) * cache.channels, std=(1.0,) * cache.channels
    )
    blocks: list[np.ndarray] = []
    for start in range(0, len(cache), 512):
        indices = np.arange(start, min(start + 512, len(cache)))
        blocks.append(plain_view(cache.batch(indices), spec).numpy())
    pixels = np.concatenate(blocks)
    if grey and pixels.shape[1] == 3:
        pixels = pixels[:, :1]
    histogram = "grey histogram" if pixels.shape[1] == 1 else HISTOGRAM
    return {
        PIXELS: _table(cache, pixel_features(pixels), PIXELS, {"size_px": size_px}),
        histogram: _table(cache, histogram_features(pixels), histogram, {"size_px": size_px}),
    }


def split_tables(
    tables: Mapping[str, FeatureTable], train: np.ndarray, test: np.ndarray
) -> dict[str, tuple[FeatureTable, FeatureTable]]:
    """Every table divided into the same training and test split."""
    return {name: (t.select(train), t.select(test)) for name, t in tables.items()}


def record_of(table: FeatureTable, index: int) -> Record:
    """The Record of one row of a table."""
    return Record(table.ids[index], table.labels[index], table.groups[index], table.splits[index])
