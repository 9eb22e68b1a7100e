"""What is decided from the data, and settings that are refused."""

import dataclasses

import pytest

from saccade.augment.settings import ViewsConfig, resolve_views
from saccade.errors import UsageError


def test_local_size_is_dinos_share_in_whole_patches():
    for size_px, patch, expected in [(224, 16, 96), (224, 8, 96), (64, 8, 32), (96, 16, 48), (32, 8, 16)]:
        config = resolve_views(ViewsConfig(), size_px=size_px, channels=3, patch=patch, local_count=8)
        assert (config.global_px, config.local_px, config.local_count) == (size_px, expected, 8)
        assert None not in dataclasses.asdict(config).values()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"global_scale": (0.5, 1.2)}, "global_scale"),
        ({"local_scale": (0.0, 0.4)}, "local_scale"),
        ({"aspect": (1.3, 0.7)}, "aspect"),
        ({"grey_prob": 1.5}, "grey_prob"),
        ({"blur_prob": (1.0, -0.1, 0.5)}, "blur_prob"),
        ({"brightness": -0.4}, "brightness"),
        ({"global_count": 0}, "global_count"),
        ({"local_count": -1}, "local_count"),
        ({"local_px": 30}, "local_px"),
    ],
)
def test_settings_that_cannot_be_meant(change, word):
    with pytest.raises(UsageError, match=word):
        resolve_views(dataclasses.replace(ViewsConfig(), **change), size_px=32, channels=3, patch=8, local_count=4)


def test_colour_settings_without_colour():
    with pytest.raises(UsageError, match="stain has no effect on images with 1"):
        resolve_views(ViewsConfig(stain=0.2), size_px=32, channels=1, patch=8, local_count=2)
