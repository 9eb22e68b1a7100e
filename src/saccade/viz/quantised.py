"""Attention weights in one byte each, for pages that carry their numbers with them. numpy, no torch.

Every row is stored by its largest and smallest weight and, for each weight, its place between them: 254 even steps of
the logarithm. So small weights are kept as exactly, in proportion, as large ones, and rows that are nearly even most
exactly of all. What is below FLOOR of the row's largest becomes 0. What was lost is measured on the numbers themselves,
and said where they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-5
STEPS = 254


@dataclass(frozen=True)
class Quantised:
    """codes uint8 [... N]; largest, smallest float32 [...] of each row; the losses against the exact weights.

    relative   largest relative error of a weight that is kept        absolute   largest error of any weight
    dropped    largest sum of weights of one row that became 0
    """

    codes: np.ndarray
    largest: np.ndarray
    smallest: np.ndarray
    relative: float
    absolute: float
    dropped: float


def quantise(weights: np.ndarray) -> Quantised:
    """Rows of weights [... N], not negative, in one byte each."""
    exact = np.asarray(weights, dtype=np.float64)
    top = np.maximum(exact.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny).astype(np.float32)
    kept = exact >= FLOOR * top
    low = np.where(kept, exact, np.inf).min(axis=-1, keepdims=True)
    low = np.where(np.isfinite(low), low, top).astype(np.float32)
    spread = np.log(top.astype(np.float64) / low)
    part = np.log(np.where(kept, exact, low) / low.astype(np.float64)) / np.where(spread > 0, spread, 1)
    codes = np.where(kept, 1 + (STEPS * part).round().clip(0, STEPS), 0).astype(np.uint8)
    found = dequantise(codes, top[..., 0], low[..., 0])
    error = np.abs(found - exact)
    return Quantised(
        codes=codes,
        largest=top[..., 0],
        smallest=low[..., 0],
        relative=float((error[kept] / exact[kept]).max()) if kept.any() else 0.0,
        absolute=float(error.max()),
        dropped=float(np.where(kept, 0, exact).sum(axis=-1).max()),
    )


def dequantise(codes: np.ndarray, largest: np.ndarray, smallest: np.ndarray) -> np.ndarray:
    """The weights again, float64 [... N]; the page's ``embedded.js`` does the same."""
    low, top = (np.asarray(one, dtype=np.float64)[..., None] for one in (smallest, largest))
    return np.where(codes > 0, low * np.exp((codes.astype(np.float64) - 1) / STEPS * np.log(top / low)), 0)


def lost(losses: Iterable[Quantised]) -> str:
    """What a page says of its own numbers."""
    found = list(losses)
    relative, absolute, dropped = (
        max(getattr(one, name) for one in found) for name in ("relative", "absolute", "dropped")
    )
    small = f"; those below 1/{1 / FLOOR:,.0f} of their row's largest are 0 ({100 * dropped:.2g} % of a row at most)"
    off = "less than 0.001" if absolute < 1e-5 else f"at most {100 * absolute:.2g}"
    return (
        f"Weights are kept in one byte: within {100 * relative:.2g} % of themselves, {off} percentage points off"
        f"{small if dropped > 0 else ''}."
    )
