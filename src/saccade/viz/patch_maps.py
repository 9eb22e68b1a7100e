"""Maps over the patch grid as plain numbers: the record, the mask that holds most of the mass, its overlap.

The mask is that of figures 3 and 4 of Caron et al. 2021 (DINO, arXiv:2104.14294): the smallest set of patches
that holds 60 % of the attention. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from saccade.errors import UsageError

Kind = Literal["attention", "rollout", "similarity"]
Box = tuple[int, ...]


@dataclass(frozen=True)
class AttentionMap:
    """How much one query takes from every patch of an image, or of a volume: T comes before Y everywhere then.

    values        [H Y' X'] float32 over the patch grid; H is 1 for rollout and similarity.
                  Attention and rollout are shares of the whole row, class and register tokens included, so a
                  map sums to ``1 - prefix_share``. Similarity is a cosine, -1 to 1.
    mean          [Y' X'] float32, the mean over heads
    grid          (Y', X')
    size_px       (Y, X) of the network's input
    query_box     (top, left, height, width) of the asking patch, pixels of the input; None: the class token. Of volumes
                  (front, top, left, depth, height, width)
    kind          what the numbers are
    prefix_share  [H] float32, the share of the row that goes to class and register tokens; 0 for similarity
    layer         0-based layer the rows were taken from; None for rollout (all layers) and similarity
    """

    values: np.ndarray
    mean: np.ndarray
    grid: tuple[int, ...]
    size_px: tuple[int, ...]
    query_box: Box | None
    kind: Kind
    prefix_share: np.ndarray
    layer: int | None = None


def threshold_mask(values: np.ndarray, keep: float = 0.6) -> np.ndarray:
    """The smallest set of patches of ``values`` [Y X] that holds the share ``keep`` of the mass; bool [Y X].

    Negative values (dissimilar patches) and NaN carry no mass. A map without mass gives an empty mask.
    Raises UsageError unless 0 < keep <= 1.
    """
    if not 0 < keep <= 1:
        raise UsageError("the kept share of a map does not fit", got=keep, expected="0 < keep <= 1")
    mass = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0, None).ravel()
    mask = np.zeros(mass.shape, dtype=bool)
    if mass.sum() > 0:
        order = np.argsort(-mass, kind="stable")
        held = np.cumsum(mass[order] / mass.max())  # a share of the smallest numbers there are would be 0
        count = int(np.searchsorted(held, keep * held[-1] * (1 - 1e-9))) + 1
        mask[order[:count]] = True
    return mask.reshape(np.shape(values))


def jaccard(mask_a: np.ndarray, mask_b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1.0 when both are empty.

    Raises UsageError when the shapes differ.
    """
    a, b = np.asarray(mask_a, dtype=bool), np.asarray(mask_b, dtype=bool)
    if a.shape != b.shape:
        raise UsageError("two masks must have one shape", got=f"{a.shape} and {b.shape}")
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def upsample(values: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """A map [Y' X'] brought to ``size_px`` (Y, X): bilinear float32 for numbers, nearest bool for masks.

    Pixel centres are aligned as in torch's ``interpolate(align_corners=False)``.
    """
    mask = np.asarray(values).dtype == bool
    kind = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    large = np.asarray(picture.resize((size_px[1], size_px[0]), kind), dtype=np.float32)
    return large > 0.5 if mask else large
