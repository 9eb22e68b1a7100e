"""Maps over the patch grid: the record, the mask that holds most of the mass, its overlap. No torch.

The mask is that of figures 3 and 4 of Caron et al. 2021 (DINO, arXiv:2104.14294): the fewest patches that hold 60 % of
the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from saccade.errors import UsageError

Kind = Literal["attention", "rollout", "similarity"]
Box = tuple[int, ...]


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one query over every patch of an image or a volume (then T comes before Y everywhere).

    Parameters
    ----------
    values : ndarray
        [H Y' X'] float32 over the patch grid; H is 1 for rollout and similarity. Attention and rollout are fractions of
        the whole row, class and register tokens included: a map sums to ``1 - prefix_share``. Similarity is a cosine.
    mean : ndarray
        [Y' X'] float32, the mean over heads.
    grid : tuple of int
        (Y', X').
    size_px : tuple of int
        (Y, X) of the network's input.
    query_box : tuple of int, optional
        (top, left, height, width) of the query patch in pixels of the input, of volumes (front, top, left, depth,
        height, width); None is the class token.
    kind : {"attention", "rollout", "similarity"}
        What the values are.
    prefix_share : ndarray
        [H] float32, the fraction of the row on class and register tokens; 0 for similarity.
    layer : int, optional
        0-based layer of the rows; None for rollout and similarity.
    n_keys : int, optional
        Number of keys that the query sees, class and register tokens included; None counts the patches.
    """

    values: np.ndarray
    mean: np.ndarray
    grid: tuple[int, ...]
    size_px: tuple[int, ...]
    query_box: Box | None
    kind: Kind
    prefix_share: np.ndarray
    layer: int | None = None
    n_keys: int | None = None

    @property
    def even(self) -> float:
        """The even share: the weight of each key if all had the same."""
        return 1 / (self.n_keys or int(np.prod(self.grid)))

    def mean_only(self) -> AttentionMap:
        """This map without its heads."""
        return replace(self, values=self.mean[None])

    def almost_uniform(self, values: np.ndarray) -> bool:
        """Whether no value of an attention map has twice the even share."""
        return self.kind != "similarity" and float(np.nanmax(values)) < 2 * self.even

    def largest(self, values: np.ndarray) -> str:
        """The largest of some values of this map in words, for captions; of similarities both ends."""
        high = float(np.nanmax(values))
        if self.kind == "similarity":
            return f"{float(np.nanmin(values)):.2f} to {high:.2f}"
        times = f"{high / self.even:.1f} x even"
        return f"{times}: almost uniform" if self.almost_uniform(values) else f"up to {100 * high:.1f} %, {times}"


@dataclass(frozen=True)
class ColourScale:
    """The values at the two ends of the colours, and the even share between them; None for similarity."""

    low: float
    high: float
    even: float | None

    def strength(self, values: np.ndarray) -> np.ndarray:
        """Values as float32 in 0..1 of the scale; NaN becomes 0.

        Examples
        --------
        >>> ColourScale(0.0, 2.0, 1.0).strength(np.array([1.0, 3.0]))
        array([0.5, 1. ], dtype=float32)
        """
        span = self.high - self.low if self.high > self.low else 1.0
        scaled: np.ndarray = np.clip((np.nan_to_num(values, nan=self.low) - self.low) / span, 0, 1).astype(np.float32)
        return scaled

    def label(self, value: float) -> str:
        """A value in multiples of the even share, or as a similarity."""
        return f"{value:.2f}" if self.even is None else f"{value / self.even:.3g} x"


def colour_scales(maps: Sequence[AttentionMap], *, stretch: bool = False) -> list[ColourScale]:
    """One colour scale for maps of one kind, in multiples of the even share of each.

    Attention goes from 0 to the largest weight of all, but at least to twice the even share, so that an almost uniform
    map looks uniform. Cosine similarity goes from 0, or the smallest value, to 1.

    Parameters
    ----------
    maps : sequence of AttentionMap
        The maps to compare.
    stretch : bool
        From the smallest to the largest value instead.
    """
    lows = [min(float(np.nanmin(amap.values)), float(np.nanmin(amap.mean))) for amap in maps]
    highs = [max(float(np.nanmax(amap.values)), float(np.nanmax(amap.mean))) for amap in maps]
    evens = [None if amap.kind == "similarity" else amap.even for amap in maps]
    if stretch:
        return [ColourScale(min(lows), max(highs), even) for even in evens]
    most = max([2.0, *(high / even for high, even in zip(highs, evens) if even is not None)])
    return [
        ColourScale(min(0.0, *lows), 1.0, None) if even is None else ColourScale(0.0, most * even, even)
        for even in evens
    ]


def query_text(amap: AttentionMap) -> str:
    """The query of a map in words, for captions."""
    patch = "class token" if amap.query_box is None else "marked patch"
    if amap.kind == "similarity":
        return "similarity to the mean" if amap.query_box is None else "similarity to the marked patch"
    return f"query: {patch}"


def threshold_mask(values: np.ndarray, keep: float = 0.6) -> np.ndarray:
    """The fewest patches of ``values`` that hold the fraction ``keep`` of the mass, as bool of the same shape.

    Negative values and NaN carry no mass; a map without mass gives an empty mask.

    Raises
    ------
    UsageError
        ``keep`` is not above 0 and at most 1.

    Examples
    --------
    >>> threshold_mask(np.array([[0.5, 0.3, 0.2]]), 0.6)
    array([[ True,  True, False]])
    """
    if not 0 < keep <= 1:
        raise UsageError("threshold out of range", got=keep, expected="a fraction above 0, at most 1")
    mass = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0, None).ravel()
    mask = np.zeros(mass.shape, dtype=bool)
    if mass.sum() > 0:
        order = np.argsort(-mass, kind="stable")
        held = np.cumsum(mass[order] / mass.max())  # a fraction of denormal numbers would be 0
        count = int(np.searchsorted(held, keep * held[-1] * (1 - 1e-9))) + 1
        mask[order[:count]] = True
    return mask.reshape(np.shape(values))


def jaccard(mask_a: np.ndarray, mask_b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1.0 when both are empty.

    Raises
    ------
    UsageError
        The shapes differ.

    Examples
    --------
    >>> jaccard(np.array([True, True]), np.array([True, False]))
    0.5
    """
    a, b = np.asarray(mask_a, dtype=bool), np.asarray(mask_b, dtype=bool)
    if a.shape != b.shape:
        raise UsageError("the masks differ in shape", got=f"{a.shape} and {b.shape}")
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def upsample(values: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """A map [Y' X'] resized to ``size_px`` (Y, X): bilinear float32 for numbers, nearest bool for masks.

    Pixel centres are aligned as in torch's ``interpolate(align_corners=False)``.
    """
    mask = np.asarray(values).dtype == bool
    kind = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    large = np.asarray(picture.resize((size_px[1], size_px[0]), kind), dtype=np.float32)
    return large > 0.5 if mask else large
