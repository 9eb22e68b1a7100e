"""Attention over one image (``saccade attend``), and the figures of a run's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.attention import volume
from saccade.attention.maps import AttentionMap, Query, attention_map, threshold_mask
from saccade.attention.mask_scores import KEEP, agreement, check_fits
from saccade.attention.options import AttendOptions, check_options, facts_of, numbers_of, words_of
from saccade.augment.color import to_grey
from saccade.augment.views import normalise
from saccade.base import frames, run_folder
from saccade.base.contracts import InputSpec
from saccade.base.files import write_bytes, write_text
from saccade.data.cache.image_cache import ImageCache, fit_range, input_spec
from saccade.data.images.decode import decode, decode_mask
from saccade.data.images.downsample import convert_channels, finite
from saccade.data.sources.masks import masks_for
from saccade.data.sources.volume_files import union_of_masks
from saccade.errors import DataError, UsageError
from saccade.features.embed_images import Decoded, random_twin
from saccade.features.table import FeatureTable, nearest
from saccade.models.backbones.weights import LoadedModel, load_model
from saccade.models.nn.attention import has_attention
from saccade.viz.overlays import Neighbour, attention_panel, neighbours_panel, overlay_svg
from saccade.viz.patch_maps import colour_scales
from saccade.viz.save import map_csv, save_by_suffix


@dataclasses.dataclass(frozen=True)
class ImageAttention(frames.Tabular):
    """One image with its attention map and Jaccard indices."""

    image: np.ndarray
    amap: AttentionMap
    options: AttendOptions
    model: str
    jaccard: dict[str, float]

    def text(self) -> str:
        """The result as text for a terminal."""
        lines = words_of(self.model, self.amap, self.options)
        lines += [f"Jaccard index with the mask, {name}: {value:.3f}" for name, value in self.jaccard.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return facts_of(self.model, self.amap, self.options, self.jaccard)

    def selected(self) -> AttentionMap:
        """The map of the head asked for, or of the mean; 0 below the threshold."""
        amap, head, keep = self.amap, self.options.head, self.options.threshold
        if head != "all":
            values = amap.mean[None] if head == "mean" else amap.values[int(head)][None]
            amap = dataclasses.replace(amap, values=values, mean=values[0])
        if keep is None:
            return amap
        values = np.stack([np.where(threshold_mask(head_map, keep), head_map, 0) for head_map in amap.values])
        return dataclasses.replace(amap, values=values, mean=np.where(threshold_mask(amap.mean, keep), amap.mean, 0))

    def save(self, path: Path) -> Path:
        """Write PNG (panel), SVG (vector overlay) or CSV (head, row, column, weight).

        Raises
        ------
        UsageError
            The suffix is none of these.
        """
        amap = self.selected()
        scale, mean_scale = (colour_scales([one], stretch=self.options.stretch)[0] for one in (amap, amap.mean_only()))
        writers: dict[str, Callable[[Path], object]] = {
            ".png": lambda target: write_bytes(target, attention_panel(self.image, amap, scale)),
            ".svg": lambda target: write_text(target, overlay_svg(self.image, amap, scale=mean_scale)),
            ".csv": lambda target: write_text(target, map_csv(amap.values)),
        }
        return save_by_suffix(path, writers, "picture format")

    def frame_columns(self) -> dict[str, np.ndarray]:
        """One row per head and patch: head, row, column, weight."""
        values = self.selected().values
        head, row, column = np.indices(values.shape).reshape(3, -1)
        return {"head": head, "row": row, "column": column, "weight": values.ravel()}

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise DataError("image file not found", got=path)
    return path.read_bytes()


def _displayed(x: torch.Tensor, spec: InputSpec) -> np.ndarray:
    """A network input [1 C Y X] as an uint8 picture [3 Y X]."""
    std, mean = torch.tensor(spec.std).view(-1, 1, 1), torch.tensor(spec.mean).view(-1, 1, 1)
    pixels = ((x[0].cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return np.repeat(pixels[:1], 3, axis=0) if pixels.shape[0] != 3 else pixels


def _fit(pixels: np.ndarray, size_px: int, multiple: int) -> tuple[int, int]:
    """Rows and columns near ``size_px`` (shorter side), aspect kept, divisible by the patch."""
    rows, columns = pixels.shape[-2:]
    factor = size_px / min(rows, columns)
    fitted = [max(multiple, round(side * factor / multiple) * multiple) for side in (rows, columns)]
    return fitted[0], fitted[1]


def _query(text: str, rows: int, columns: int, input_px: tuple[int, int]) -> Query:
    """The query in pixels of the network's input."""
    if text == "cls":
        return "cls"
    y, x = numbers_of(text, 2)
    if not (0 <= y < rows and 0 <= x < columns):
        raise UsageError("the query lies outside the image", got=text, expected=f"0..{rows - 1},0..{columns - 1}")
    return int(y * input_px[0] / rows), int(x * input_px[1] / columns)


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One image as a network gets it: ``x`` [1 C Y X] normalised, ``image`` the same as a picture, uint8 [3 Y X]."""

    x: torch.Tensor
    image: np.ndarray


def input_size(loaded: LoadedModel, pixels: np.ndarray, size_px: int | None = None) -> tuple[int, int]:
    """Rows and columns to which ``to_model_input`` resizes an image [C Y X]."""
    return _fit(pixels, size_px or loaded.spec.size_px, _patch(loaded))


def to_model_input(loaded: LoadedModel, pixels: np.ndarray, name: str, size_px: int | None = None) -> ModelInput:
    """Resize and normalise a whole image for a network.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    pixels : ndarray
        [C Y X].
    name : str
        For messages.
    size_px : int, optional
        Shorter side, rounded to a multiple of the patch; None is the size of the model's training.

    Raises
    ------
    DataError
        The channels do not fit, or pixels are not finite.
    """
    pixels = finite(convert_channels(pixels, loaded.spec.channels, name), name)
    size = input_size(loaded, pixels, size_px)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(pixels.astype(np.float32))[None], size=size, mode="bilinear", antialias=True
    )[0].numpy()
    spec = fit_range(loaded.spec, pixels.dtype, float(pixels.min()), float(pixels.max()))
    x = normalised(small, spec)
    return ModelInput(x, _displayed(x, spec))


def attend(model: str | Path, image: str | Path, options: AttendOptions) -> ImageAttention | volume.VolumeAttention:
    """The attention map of one query over one image file or one volume.

    Parameters
    ----------
    model : str or Path
        MODEL as on the command line.
    image : str or Path
        The file.
    options : AttendOptions
        Query, layer, head, size and mask.

    Raises
    ------
    UsageError, ModelError, DataError
        The options, the model and the image do not fit each other.
    """
    if volume.is_volume(image):
        return volume.attend(model, image, options)
    pixels = decode(_bytes_of(Path(image)), str(image))
    loaded = load_model(model, channels=pixels.shape[0])
    inputs = to_model_input(loaded, pixels, str(image), options.size_px)
    query = _query(options.query, pixels.shape[1], pixels.shape[2], (inputs.x.shape[-2], inputs.x.shape[-1]))
    check_options(options, loaded)
    layer = -1 if options.layer is None else options.layer
    amap = attention_map(loaded.backbone, inputs.x, query=query, layer=layer, rollout=options.rollout)
    scores = {}
    if options.mask is not None:
        files = masks_for(Path(image), options.mask)
        truth = (
            decode_mask(_bytes_of(files[0]), str(files[0]))
            if len(files) == 1
            else union_of_masks({str(file): _bytes_of(file) for file in files})
        )
        check_fits(truth, pixels, str(files[0]))
        scores = agreement(amap, truth, KEEP if options.threshold is None else options.threshold)
    return ImageAttention(inputs.image, amap, options, loaded.name, scores)


def normalised(pixels: np.ndarray, spec: InputSpec) -> torch.Tensor:
    """[C Y X] in the file's range to the network's input [1 C Y X], without resizing."""
    x = (torch.from_numpy(pixels.astype(np.float32))[None] - spec.offset) / spec.scale
    return normalise(to_grey(x) if spec.grey else x, spec)


# --- the panels of a report -----------------------------------------------------------------------

MAP_IMAGES = 4  # number of test images with attention maps
QUERIES, NEIGHBOURS = 5, 6


def draw(
    run: Path,
    tables: Mapping[str, FeatureTable],
    models: Mapping[str, LoadedModel],
    decoded: Decoded,
    parts: tuple[np.ndarray, np.ndarray],
) -> None:
    """Write RUN/figures: maps of test images for trained and random weights, and nearest neighbours.

    Parameters
    ----------
    run : Path
        The run folder.
    tables, models : mapping
        Feature tables and models by name; the first model is shown.
    decoded : Decoded
        The images.
    parts : tuple of ndarray
        Indices of the training and the test part in the tables.
    """
    train, test = parts
    name, model = next(iter(models.items()))
    table = tables[name]
    cache = decoded.at(model.spec.size_px, model.spec.channels, model.spec)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    chosen = _one_a_class(table, test)
    entries = [_neighbours(folder, table, cache, train, chosen[:QUERIES])]
    twin = random_twin(model, seed=1)
    for index in chosen[:MAP_IMAGES]:
        entries += _map_figures(folder, (model, twin), cache, table, index)
    run_folder.write_json(folder / "index.json", entries)


def _one_a_class(table: FeatureTable, test: np.ndarray) -> list[int]:
    """Test images, one of each class in turn, in a fixed order."""
    by_label: dict[str, list[int]] = {}
    for index in test:
        by_label.setdefault(str(table.labels[index]), []).append(int(index))
    queues = [by_label[label] for label in sorted(by_label)]
    return [queue[turn] for turn in range(max(MAP_IMAGES, QUERIES)) for queue in queues if turn < len(queue)]


def _eight_bit(cache: ImageCache, index: int) -> np.ndarray:
    spec = input_spec(cache, 1, grey=False)
    image = cache.image(index)
    if cache.axes == 3:  # a volume is represented by its middle slice
        image = image[:, image.shape[1] // 2]
    scaled = (image.astype(np.float32) - spec.offset) / spec.scale * 255
    pixels = scaled.round().clip(0, 255).astype(np.uint8)
    return pixels if pixels.shape[0] == 3 else np.repeat(pixels[:1], 3, axis=0)


def _neighbours(
    folder: Path, table: FeatureTable, cache: ImageCache, train: np.ndarray, queries: Sequence[int]
) -> dict[str, str]:
    scores, indices = nearest(table.select(train).features, table.features[list(queries)], NEIGHBOURS)
    rows = []
    for query, row_scores, row in zip(queries, scores, indices):
        near = [
            Neighbour(_eight_bit(cache, int(train[i])), table.labels[train[i]], float(score))
            for i, score in zip(row, row_scores)
        ]
        rows.append((Neighbour(_eight_bit(cache, query), table.labels[query]), near))
    (folder / "neighbours.png").write_bytes(neighbours_panel(rows))
    return {
        "file": "neighbours.png",
        "kind": "neighbours",
        "title": "Nearest training images of some test images",
        "caption": "By cosine similarity of the features. Labels were not used in training.",
        "alt": "Rows of test images with their most similar training images.",
    }


def _map_figures(
    folder: Path, models: Sequence[LoadedModel], cache: ImageCache, table: FeatureTable, index: int
) -> list[dict[str, str]]:
    """Pictures of one image by the trained model and its twin with random weights, on one colour scale."""
    # A CNN has no class token; similarity to one patch says more than similarity to the mean.
    attentive = has_attention(models[0].backbone)
    what = "attention of the class token" if attentive else "similarity of each patch to the middle patch"
    if cache.axes == 3:
        volumes = [volume.CachedVolume(model, cache, index) for model in models]
        scales = colour_scales([one.attention.amap for one in volumes])
        pictures = [one.picture(scale) for one, scale in zip(volumes, scales)]
    else:
        maps = [_cached_map(model, cache, index) for model in models]
        scales = colour_scales([amap for _, amap in maps])
        pictures = [attention_panel(image, amap, scale) for (image, amap), scale in zip(maps, scales)]
    entries = []
    for picture, who in zip(pictures, ("trained", "random weights")):
        file = f"map-{index:06d}-{who.split()[0]}.png"
        (folder / file).write_bytes(picture)
        entries.append(
            {
                "file": file,
                "kind": "attention",
                "title": f"{table.labels[index] or table.ids[index]}, {who}",
                "caption": f"{what.capitalize()}, {who}, on one scale. {table.ids[index]}",
                "alt": f"{what} over a test image of class {table.labels[index]}, {who}",
            }
        )
    return entries


def _cached_map(model: LoadedModel, cache: ImageCache, index: int) -> tuple[np.ndarray, AttentionMap]:
    """The input as a picture, and the map over it."""
    spec = model.spec
    pixels = cache.image(index).astype(np.float32)
    size_px = _fit(pixels, max(spec.size_px, 8 * _patch(model)), _patch(model))
    large = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], size=size_px, mode="bilinear")[0].numpy()
    x = normalised(large, spec)
    query: Query = "cls" if has_attention(model.backbone) else (size_px[0] // 2, size_px[1] // 2)
    return _displayed(x, spec), attention_map(model.backbone.cpu().eval(), x, query=query)


def _patch(model: LoadedModel) -> int:
    """Pixels that the sides of the model's input are multiples of."""
    backbone = model.backbone
    return max(backbone.stride_px, backbone.settings.unit_px)
