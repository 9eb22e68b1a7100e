"""Slides made for tests: real pyramidal TIFF with tiles and resolution tags, small enough to be written in a test."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

UM = 0.5


def texture(rows: int, columns: int, seed: int = 0, grain: float = 1.0) -> np.ndarray:
    """[Y X 3] uint8: smooth noise in the colours of H&E, without edges that a resampling could hide behind."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((rows, columns)), grain) * 3 * grain
    amount = np.clip(1 + noise, 0.2, 2.5)[..., None]
    return (245 * np.exp(-amount * np.array([0.30, 0.75, 0.35]))).astype(np.uint8)


def on_glass(pixels: np.ndarray, margin: int) -> np.ndarray:
    """The same picture with a white rim."""
    found = np.full_like(pixels, 243)
    found[margin:-margin, margin:-margin] = pixels[margin:-margin, margin:-margin]
    return found


def write_slide(
    path: Path, pixels: np.ndarray, *, um: float | None = UM, level_px: tuple[tuple[int, int], ...] = ()
) -> Path:
    """A tiled TIFF with the levels asked for (rows, columns), each reduced from level 0; ``um`` None: no resolution."""
    tags = {} if um is None else {"resolution": (10_000 / um, 10_000 / um), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", compression="deflate", **tags)
        for rows, columns in level_px:
            small = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR))
            file.write(small, tile=(128, 128), photometric="rgb", compression="deflate", subfiletype=1)
    return path
