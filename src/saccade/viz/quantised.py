"""Attention weights in one byte each, for pages that carry their numbers with them. numpy, no torch.

Every row is stored by its largest weight and, for each weight, the logarithm of its share of that largest one: 254
even steps down to FLOOR. So small weights are kept as exactly, in proportion, as large ones; below FLOOR is 0.
What was lost is measured on the numbers themselves, and said where they are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-5
STEP = -math.log(FLOOR) / 254


@dataclass(frozen=True)
class Quantised:
    """codes uint8 [... N], largest float32 [...] of each row, and the losses against the exact weights.

    relative   largest relative error of a weight that is kept        absolute   largest error of any weight
    dropped    largest sum of weights of one row that became 0
    """

    codes: np.ndarray
    largest: np.ndarray
    relative: float
    absolute: float
    dropped: float


def quantise(weights: np.ndarray) -> Quantised:
    """Rows of weights [... N], not negative, in one byte each."""
    exact = np.asarray(weights, dtype=np.float64)
    largest = exact.max(axis=-1).astype(np.float32)
    share = exact / np.maximum(largest[..., None], np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore"):
        codes = np.clip(np.nan_to_num(255 + np.log(share) / STEP, neginf=0), 0, 255).round().astype(np.uint8)
    found = dequantise(codes, largest)
    kept = codes > 0
    error = np.abs(found - exact)
    return Quantised(
        codes=codes,
        largest=largest,
        relative=float((error[kept] / exact[kept]).max()) if kept.any() else 0.0,
        absolute=float(error.max()),
        dropped=float(np.where(kept, 0, exact).sum(axis=-1).max()),
    )


def dequantise(codes: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The weights again, float64 [... N]; the page's ``embedded.js`` does the same."""
    table = np.exp((np.arange(256) - 255) * STEP)
    table[0] = 0
    return table[codes] * np.asarray(largest, dtype=np.float64)[..., None]
