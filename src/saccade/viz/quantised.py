"""Attention weights in one byte each, for pages that carry their numbers. numpy, no torch.

Every row is stored as its largest and smallest weight and, for each weight, one of 254 equal steps of the logarithm
between them, so that the relative error is the same for small and large weights. Weights below FLOOR of the row's
largest become 0. The error is measured on the numbers themselves and stated on the page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-5
STEPS = 254


@dataclass(frozen=True)
class Quantised:
    """Quantised rows and their errors against the exact weights.

    Parameters
    ----------
    codes : ndarray
        uint8 [... N].
    largest, smallest : ndarray
        float32 [...], of each row.
    relative, absolute : float
        Largest relative error of a nonzero weight, and largest error of any weight.
    dropped : float
        Largest sum of weights of one row that became 0.
    """

    codes: np.ndarray
    largest: np.ndarray
    smallest: np.ndarray
    relative: float
    absolute: float
    dropped: float


def quantise(weights: np.ndarray) -> Quantised:
    """Quantise rows of nonnegative weights [... N] to one byte each.

    Examples
    --------
    >>> rows = quantise(np.array([[0.75, 0.25]]))
    >>> dequantise(rows.codes, rows.largest, rows.smallest)
    array([[0.75, 0.25]])
    """
    exact = np.asarray(weights, dtype=np.float64)
    top = np.maximum(exact.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny).astype(np.float32)
    nonzero = exact >= FLOOR * top
    low = np.where(nonzero, exact, np.inf).min(axis=-1, keepdims=True)
    low = np.where(np.isfinite(low), low, top).astype(np.float32)
    spread = np.log(top.astype(np.float64) / low)
    part = np.log(np.where(nonzero, exact, low) / low.astype(np.float64)) / np.where(spread > 0, spread, 1)
    codes = np.where(nonzero, 1 + (STEPS * part).round().clip(0, STEPS), 0).astype(np.uint8)
    restored = dequantise(codes, top[..., 0], low[..., 0])
    error = np.abs(restored - exact)
    return Quantised(
        codes=codes,
        largest=top[..., 0],
        smallest=low[..., 0],
        relative=float((error[nonzero] / exact[nonzero]).max()) if nonzero.any() else 0.0,
        absolute=float(error.max()),
        dropped=float(np.where(nonzero, 0, exact).sum(axis=-1).max()),
    )


def dequantise(codes: np.ndarray, largest: np.ndarray, smallest: np.ndarray) -> np.ndarray:
    """The weights, float64 [... N]; the page's ``embedded_data.js`` does the same."""
    low, top = (np.asarray(values, dtype=np.float64)[..., None] for values in (smallest, largest))
    return np.where(codes > 0, low * np.exp((codes.astype(np.float64) - 1) / STEPS * np.log(top / low)), 0)


def lost(losses: Iterable[Quantised]) -> str:
    """The quantisation error in words, for the page."""
    blocks = list(losses)
    relative, absolute, dropped = (
        max(getattr(block, name) for block in blocks) for name in ("relative", "absolute", "dropped")
    )
    small = f"; those below 1/{1 / FLOOR:,.0f} of their row's largest are 0 ({100 * dropped:.2g} % of a row at most)"
    off = "less than 0.001" if absolute < 1e-5 else f"at most {100 * absolute:.2g}"
    return (
        f"Weights are kept in one byte: within {100 * relative:.2g} % of themselves, {off} percentage points off"
        f"{small if dropped > 0 else ''}."
    )
