"""Agreement of attention with true masks: of one map, and of models over a set of images (``evaluate --masks``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saccade.attention import volume
from saccade.attention.maps import AttentionMap, attention_map, jaccard, threshold_mask, upsample
from saccade.base.contracts import Sample, Source
from saccade.data.sources.files import FileSource
from saccade.data.sources.masks import AUTO, MaskFolder
from saccade.data.sources.source import Selection
from saccade.data.sources.volume_files import union_of_masks
from saccade.data.splits import unit_names
from saccade.errors import DataError, UsageError
from saccade.evaluation.metrics import Resampled, resampling_weights, summarise_models
from saccade.evaluation.small_samples import few_words
from saccade.features.embed_images import Decoded
from saccade.models.backbones.weights import LoadedModel

KEEP = 0.6
"""Fraction of the attention that is compared with a mask, as in figure 4 of the DINO paper (Caron et al. 2021)."""
MOST = 500  # images; more are drawn evenly


def agreement(amap: AttentionMap, truth: np.ndarray, keep: float) -> dict[str, float]:
    """Jaccard index of the thresholded maps with a mask [Y X]: of the mean map, and of the best single head."""
    heads = [jaccard(upsample(threshold_mask(head, keep), truth.shape), truth) for head in amap.values]
    scores = {"mean of heads": jaccard(upsample(threshold_mask(amap.mean, keep), truth.shape), truth)}
    return scores | ({f"best head ({int(np.argmax(heads))})": max(heads)} if len(heads) > 1 else {})


def check_fits(truth: np.ndarray, pixels: np.ndarray, name: str) -> None:
    """Raise DataError for a mask [Y X] whose aspect is not that of its image [C Y X]."""
    rows, columns = pixels.shape[-2:]
    if abs(truth.shape[0] * columns / (truth.shape[1] * rows) - 1) > 0.05:
        got = f"mask {truth.shape[0]} x {truth.shape[1]}, image {rows} x {columns} px"
        raise DataError(f"{name}: the mask does not fit the image", got=got, expected="the same aspect")


def mask_reader(source: Source, masks: str | Path) -> Callable[[int, Sample], np.ndarray | None]:
    """A function of index and sample to the mask as bool; None where the image has none.

    Raises UsageError for data without masks, and for a folder of masks that does not exist.
    """
    if isinstance(source, Selection):
        inner, indices = mask_reader(source.source, masks), source.indices
        return lambda index, sample: inner(indices[index], sample)
    if str(masks) != AUTO:
        if source.axes == 3:
            raise UsageError(
                "masks of volumes are those beside them", got=f"--masks {masks}", expected=f"--masks {AUTO}"
            )
        folder = MaskFolder(Path(masks))

        def of_folder(index: int, _: Sample) -> np.ndarray | None:
            files = folder.masks_of(source.records[index].id)
            return union_of_masks({str(file): file.read_bytes() for file in files}) if files else None

        return of_folder
    if not isinstance(source, FileSource):
        raise UsageError("these data have no masks", got=source.name, expected="images or volumes with masks")
    if source.axes == 3:
        return lambda _, sample: None if sample.mask is None else sample.mask > 0
    files = source
    return lambda index, _: files.read_mask(index)


def mask_scores(
    models: Mapping[str, LoadedModel],
    decoded: Decoded,
    indices: Sequence[int],
    masks: str | Path,
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Mean Jaccard index of each model's attention with the masks of some images, and paired differences.

    Parameters
    ----------
    models : mapping
        By name; the first is compared with each other.
    decoded : Decoded
        The images; ``indices`` of them are measured, at most 500, drawn evenly.
    masks : str or Path
        ``auto`` or a folder, as ``mask_reader`` takes it.
    bootstrap, seed : int
        Resamples of the groups and their seed.

    Returns
    -------
    dict
        ``rows`` and ``differences`` as in an EvalReport, counts, and ``text``.

    Raises
    ------
    UsageError
        None of the images has a mask with pixels inside.
    """
    source, read = decoded.source, mask_reader(decoded.source, masks)
    chosen = [indices[i] for i in np.unique(np.linspace(0, len(indices) - 1, min(MOST, len(indices))).astype(int))]
    measured: list[int] = []
    without = empty = 0
    values: dict[str, list[float]] = {name: [] for name in models}
    for index in chosen:
        sample = source.read(index)
        truth = read(index, sample)
        if truth is None:
            without += 1
        elif truth.all() or not truth.any():
            empty += 1
        else:
            measured.append(index)
            for name, model in models.items():
                values[name].append(_jaccard(model, decoded, index, sample, truth))
    if not measured:
        raise UsageError(
            "no image of the test part has a mask",
            got=f"{len(chosen):,} images, {without:,} without a mask, {empty:,} with an empty one",
            hint="saccade show counts the masks; --masks FOLDER names their folder",
        )
    groups = [source.records[i].group for i in measured]
    return _summary(values, groups, without, empty, bootstrap=bootstrap, seed=seed)


def _jaccard(model: LoadedModel, decoded: Decoded, index: int, sample: Sample, truth: np.ndarray) -> float:
    from saccade.attention.image import to_model_input

    network = model.backbone.cpu().eval()
    if sample.pixels.ndim == 4:
        cache = decoded.at(model.spec.size_px, model.spec.channels, model.spec)
        attention = volume.volume_map(network, cache.batch(np.array([index])), model.spec, query="cls")
        chosen = threshold_mask(attention.amap.mean, KEEP).astype(np.float32)
        return jaccard(attention.cube.at_voxels(chosen, truth.shape) > 0.5, truth)
    check_fits(truth, sample.pixels, sample.record.id)
    amap = attention_map(network, to_model_input(model, sample.pixels, sample.record.id).x, query="cls")
    return agreement(amap, truth, KEEP)["mean of heads"]


def _summary(
    values: Mapping[str, Sequence[float]],
    groups: Sequence[str | None],
    without: int,
    empty: int,
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    weights = resampling_weights(groups, bootstrap, seed)
    units = len(set(unit_names(groups)))
    estimates = {
        name: Resampled(float(np.mean(scores)), weights @ np.array(scores) / weights.sum(axis=1))
        for name, scores in values.items()
    }
    rows, differences = summarise_models(estimates, {"metric": "jaccard"}, units=units)
    left_out = f"; {without:,} have no mask" * bool(without) + f"; {empty:,} masks are empty or full" * bool(empty)
    title = f"attention and masks, Jaccard index of the {KEEP:.0%} of the attention of the class token (mean of heads)"
    lines = [f"{title} with the mask, {len(groups):,} images of the test part{left_out}"]
    lines += [f"{row['model']}  {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows]
    for row in differences:
        verdict = "clear" if row["clear"] else "not clear"
        limits = f"[{row['low']:+.3f}, {row['high']:+.3f}], {verdict}"
        lines.append(f"difference to {row['against']}  {row['difference']:+.3f} {limits}")
    few = few_words({"units_test": units})
    return {
        "images": len(groups),
        "units_test": units,
        "without_mask": without,
        "empty_masks": empty,
        "rows": rows,
        "differences": differences,
        "text": "\n".join([*lines, few] if few else lines),
    }
