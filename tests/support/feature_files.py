"""Feature files of slides, made small for tests."""

from __future__ import annotations

import numpy as np

from saccade.data.slide_features import SlideFeatures, save_parquet

STEP = 100.5  # side of a tile at level 0, in pixels


def features(path, *, rows=9, columns=10, width=5, missing=0.2, seed=0, label="a", split=None):
    """A file of the features of one slide: what a tile holds is its own row, column and noise."""
    rng = np.random.default_rng(seed)
    cells = np.argwhere(rng.random((rows, columns)) >= missing)
    coords = np.rint(cells[:, ::-1] * STEP).astype(np.int64)
    vectors = rng.normal(size=(len(cells), width)).astype(np.float32)
    vectors[:, :2] = cells
    about = {
        "slide": path.stem,
        "slide_sha256": f"{seed:064d}",
        "model": "m",
        "model_sha256": "0" * 64,
        "mpp": 1.0,
        "tile_px": 64,
        "tile_px_level0": STEP,
        "label": label,
        "group": f"patient {seed}",
        "split": split,
    }
    save_parquet(path, SlideFeatures(coords, vectors, about))
    return path, cells
