"""Options of ``saccade attend``, and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.attention.maps import AttentionMap
from saccade.errors import UsageError, out_of_range
from saccade.models.backbones.weights import LoadedModel
from saccade.models.nn.attention import has_attention


@dataclasses.dataclass(frozen=True)
class AttendOptions:
    """Query, layer, head and display options of an attention map.

    Parameters
    ----------
    query : str
        "cls", or "Y,X" in pixels of the image file, of a volume "z,y,x" in voxels of the file's array (LPS).
    layer : int, optional
        0-based; None is the last layer.
    head : str
        "all", "mean" or the number of a head.
    rollout : bool
        Attention rollout over all layers instead of one layer.
    size_px : int, optional
        Shorter side of the network's input; None is the size of the model's training.
    threshold : float, optional
        Fraction of the attention mass to keep, such as 0.6; patches outside are hidden.
    mask : str or Path, optional
        True mask (non-zero is inside) for the Jaccard index: a file, a folder of masks called as the image, or "auto",
        the masks recognised beside the image (docs/reference/formats.md); the threshold is then 0.6 unless given.
    stretch : bool
        Colours from the smallest to the largest value, instead of multiples of the even share from 0.
    """

    query: str = "cls"
    layer: int | None = None
    head: str = "all"
    rollout: bool = False
    size_px: int | None = None
    threshold: float | None = None
    mask: str | Path | None = None
    stretch: bool = False


def check_options(options: AttendOptions, loaded: LoadedModel) -> None:
    """Raise UsageError for an option that has no effect on this network or on rollout."""
    attentive = has_attention(loaded.backbone)
    if options.layer is not None and (options.rollout or not attentive):
        what = "rollout, which follows all layers" if options.rollout else f"{loaded.name}, which has no attention"
        raise UsageError(f"--layer has no effect on {what}", hint="leave out --layer")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise UsageError("threshold out of range", got=options.threshold, expected="a fraction above 0, at most 1")
    heads = loaded.backbone.heads if has_attention(loaded.backbone) and not options.rollout else 1
    if options.head not in ("all", "mean") and (not options.head.isdigit() or int(options.head) >= heads):
        raise out_of_range("head", options.head, heads - 1, also="all, mean")


def numbers_of(text: str, axes: int) -> tuple[float, ...]:
    """ "Y,X" (2 axes) or "z,y,x" (3 axes) as numbers. Raises UsageError."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != axes:
        form, example = {2: ("Y,X", "120,340"), 3: ("z,y,x of a volume", "18,25,17")}[axes]
        raise UsageError(f"--query takes cls or {form}", got=repr(text), expected=f"for example {example}")
    return numbers


def facts_of(model: str, amap: AttentionMap, options: AttendOptions, jaccard: Mapping[str, float]) -> dict[str, Any]:
    """The JSON values common to maps of images and volumes."""
    return {
        "model": model,
        "kind": amap.kind,
        "query": options.query,
        "layer": amap.layer,
        "threshold": options.threshold,
        "grid": list(amap.grid),
        "heads": amap.values.shape[0],
        "even_share": None if amap.kind == "similarity" else amap.even,
        "largest": float(amap.mean.max()),
        "almost_uniform": amap.almost_uniform(amap.mean),
        "jaccard": dict(jaccard),
    }


def words_of(model: str, amap: AttentionMap, options: AttendOptions) -> list[str]:
    """The lines of text common to maps of images and volumes."""
    lines = [f"{model}: {amap.kind} of {options.query} over {' x '.join(map(str, amap.grid))} patches"]
    if amap.kind == "similarity":
        return [*lines, "this network has no attention: the values are cosine similarities of its tokens"]
    times, even = float(amap.mean.max()) / amap.even, 100 * amap.even
    uniform = ": almost uniform" if amap.almost_uniform(amap.mean) else ""
    return [*lines, f"largest weight {times:.2f} times the even share of {even:.2g} %{uniform}"]
