"""Reduction of images before they are put into batches."""

import numpy as np
from PIL import Image

from saccade.data.cache.image_cache import build_cache
from saccade.data.images.downsample import MAX_ASPECT, shrink
from saccade.data.open import open_source


def test_a_wide_and_a_tall_image_do_not_fill_a_batch_with_padding(tmp_path):
    for name, size in (("wide", (4000, 24)), ("tall", (24, 4000)), ("square", (48, 48))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    cache = build_cache(open_source(tmp_path), cache_px=48)
    batch = cache.batch(np.arange(3))
    assert batch.pixels.shape[2:] == (48 * MAX_ASPECT, 48 * MAX_ASPECT)
    assert batch.sizes_px.tolist() == [[48, 48], [384, 24], [24, 384]]  # square, tall, wide
    assert cache.original_px.max() == 4000


def test_only_the_longer_side_of_a_narrow_image_is_reduced():
    ramp = np.tile(np.linspace(0, 255, 4000).astype(np.uint8), (1, 24, 1))
    small = shrink(ramp, 48)
    assert small.shape == (1, 24, 384) and np.abs(small[0, 0].astype(int) - np.linspace(0, 255, 384)).max() <= 2
    ordinary = np.arange(3 * 50 * 300, dtype=np.uint8).reshape(3, 50, 300)
    assert np.array_equal(shrink(ordinary, 50), ordinary)
