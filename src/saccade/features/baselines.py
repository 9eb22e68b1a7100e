"""Baseline features without a network: raw pixels and color histogram."""

from __future__ import annotations

import numpy as np


def pixel_features(pixels: np.ndarray) -> np.ndarray:
    """Raw pixels: [N C S S] in 0..1 to [N C*S*S] float32."""
    return np.ascontiguousarray(pixels, dtype=np.float32).reshape(len(pixels), -1)


def histogram_features(pixels: np.ndarray) -> np.ndarray:
    """Square root of the fraction of pixels in each bin (Hellinger), float32.

    Three channels: 8 x 8 x 8 joint bins. One channel: 64 bins. More: 32 bins per channel.
    pixels [N C S S] in 0..1
    """
    count, channels = pixels.shape[:2]
    flat = np.clip(pixels.reshape(count, channels, -1), 0, 1)
    if channels == 3:
        steps = np.minimum((flat * 8).astype(np.int64), 7)
        return _bin_fractions(steps[:, 0] * 64 + steps[:, 1] * 8 + steps[:, 2], 512)
    bins = 64 if channels == 1 else 32
    steps = np.minimum((flat * bins).astype(np.int64), bins - 1)
    return np.concatenate([_bin_fractions(steps[:, c], bins) for c in range(channels)], axis=1)


def _bin_fractions(bins: np.ndarray, count: int) -> np.ndarray:
    rows = np.arange(len(bins))[:, None] * count
    counts = np.bincount((rows + bins).ravel(), minlength=len(bins) * count).reshape(len(bins), count)
    return np.sqrt(counts / bins.shape[1]).astype(np.float32)
