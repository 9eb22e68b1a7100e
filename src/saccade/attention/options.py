"""What can be asked of a model and one image or volume, and what cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.attention.maps import AttentionMap
from saccade.errors import UsageError
from saccade.models.backbones.weights import LoadedModel
from saccade.models.nn.attention import has_attention


@dataclasses.dataclass(frozen=True)
class AttendOptions:
    """What to ask of a model and an image.

    query      ``cls``, or ``Y,X`` in pixels of the image as given, of a volume ``z,y,x`` in voxels as it lies (LPS)
    layer      0-based, None is the last; ``rollout`` follows all layers instead
    head       ``all``, ``mean`` or the number of one
    size_px    shorter side the image is shown to the network at; None is the size it was trained with
    threshold  share of the mass to keep, e.g. 0.6: what lies outside is not shown
    mask       file with the true mask (non-zero is inside); gives the Jaccard index, threshold 0.6 if open
    """

    query: str = "cls"
    layer: int | None = None
    head: str = "all"
    rollout: bool = False
    size_px: int | None = None
    threshold: float | None = None
    mask: Path | None = None


def check_options(options: AttendOptions, loaded: LoadedModel) -> None:
    """Raise UsageError for an option that this network, or rollout, has no use for."""
    attentive = has_attention(loaded.backbone)
    if options.layer is not None and (options.rollout or not attentive):
        what = "rollout, which follows all layers" if options.rollout else f"{loaded.name}, which has no attention"
        raise UsageError(f"--layer has no effect on {what}", hint="leave it out")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise UsageError("the kept share of a map does not fit", got=options.threshold, expected="0 < threshold <= 1")
    heads = loaded.backbone.heads if has_attention(loaded.backbone) and not options.rollout else 1
    if options.head not in ("all", "mean") and (not options.head.isdigit() or int(options.head) >= heads):
        raise UsageError(f"no head {options.head!r}", expected=f"all, mean or 0..{heads - 1}")


def numbers_of(text: str, axes: int) -> tuple[float, ...]:
    """``Y,X`` (2) or ``z,y,x`` (3) as numbers. Raises UsageError."""
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) != axes:
        form, example = {2: ("Y,X", "120,340"), 3: ("z,y,x of a volume", "18,25,17")}[axes]
        raise UsageError(f"--query takes cls or {form}", got=repr(text), expected=f"for example {example}")
    return found


def facts_of(model: str, amap: AttentionMap, options: AttendOptions, jaccard: Mapping[str, float]) -> dict[str, Any]:
    """What a map says of itself as JSON, of images and of volumes alike."""
    return {
        "model": model,
        "kind": amap.kind,
        "query": options.query,
        "layer": amap.layer,
        "threshold": options.threshold,
        "grid": list(amap.grid),
        "heads": amap.values.shape[0],
        "jaccard": dict(jaccard),
    }
