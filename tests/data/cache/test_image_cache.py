"""Volumes on their way to a batch: intensity by a stated rule, and no axis finer in millimetres than it must be."""

import numpy as np
import pytest
import torch

from saccade.base.contracts import InputSpec, Record, Sample
from saccade.data.cache.image_cache import build_cache, input_spec
from saccade.data.images.downsample import even_sides, shrink_volume
from saccade.data.open import open_source
from saccade.data.probe import typical_px
from saccade.data.synthetic.images import TissueSource, VolumeSource
from saccade.data.volumes.intensity import decide_intensity, intensity_of, make_intensity, to_unit
from saccade.errors import DamagedFile, DataError, UsageError
from saccade.features.embed_images import Decoded
from saccade.train.data_selection import resolve_intensity
from saccade.train.settings import DataConfig
from volume_files import counted, write_nifti, write_series


class Held:
    """Volumes held in a list, each with its spacing and modality."""

    name, axes = "held", 3

    def __init__(self, volumes, spacings=None, modality=None):
        self.volumes, self.modality = volumes, modality
        self.spacings = spacings or [None] * len(volumes)
        self.records = [Record(f"v{n}") for n in range(len(volumes))]

    def __len__(self):
        return len(self.volumes)

    def read(self, index):
        return Sample(self.volumes[index], self.records[index], spacing_mm=self.spacings[index], modality=self.modality)

    def content_hash(self, index):
        return f"h{index}"


def ramp(shape=(8, 12, 16), kind="float32", low=0.0, high=1.0) -> np.ndarray:
    return np.linspace(low, high, int(np.prod(shape))).reshape((1, *shape)).astype(kind)


# --- intensity ------------------------------------------------------------------------------------


def test_the_rule_follows_the_data():
    assert decide_intensity(Held([ramp(kind="uint8", high=255)])).kind == "range"
    assert decide_intensity(Held([ramp(high=5000)])).kind == "robust"
    assert decide_intensity(Held([ramp(kind="int16", low=-1024, high=2000)])).kind == "window"  # air at -1000
    assert decide_intensity(Held([ramp(kind="int16", low=0, high=2000)], modality="CT")).kind == "window"
    assert decide_intensity(Held([ramp(kind="int16", low=-1024, high=2000)], modality="MR")).kind == "robust"
    assert decide_intensity(Held([ramp(low=-1024.5, high=2000.5)])).kind == "robust"  # no whole numbers: no CT
    mixed = Held([ramp(kind="uint8", high=255), ramp(high=5000)])
    assert decide_intensity(mixed).kind == "robust"
    assert make_intensity("window").window == (-1000, 1000)


def test_a_window_is_in_hounsfield_units(tmp_path):
    values = np.zeros((4, 5, 6), np.int16)
    values[0], values[1], values[2], values[3] = 24, 864, 1064, 1264  # stored; less 1024 they are HU
    write_series(tmp_path / "ct", values, np.eye(4), Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    sample = open_source(tmp_path / "ct").read(0)
    unit = to_unit(sample.pixels, make_intensity("window", (-160, 240)), "ct") / 65535
    got = sorted({round(float(v), 4) for v in np.unique(unit)})
    assert got == [0, 0.5, 1]  # -1000 and -160 are the dark end, 40 the middle, 240 the bright end


def test_robust_takes_the_quantiles_of_each_volume_and_channel():
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.normal(5, 1, (20, 20, 20)), rng.normal(5000, 100, (20, 20, 20))]).astype(np.float32)
    unit = to_unit(pixels, make_intensity("robust"), "a")
    assert unit.dtype == np.uint16
    for channel in range(2):
        low, high = np.quantile(pixels[channel], (0.005, 0.995))
        there = np.clip((pixels[channel] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(unit[channel] / 65535, there, atol=2e-5)
    binary = np.zeros((1, 10, 10, 10), np.float32)
    binary[0, 5, 5, 5] = 7  # less than the quantiles see
    assert sorted(np.unique(to_unit(binary, make_intensity("robust"), "a"))) == [0, 65535]
    assert not to_unit(np.full((1, 4, 4, 4), 3.0), make_intensity("robust"), "a").any()


def test_a_model_brings_its_own_rule_to_other_data():
    volumes = [ramp(kind="int16", low=-1024, high=2000 + n) for n in range(3)]
    decoded = Decoded(Held(volumes), max_bad=0.0, report=None)
    spec = InputSpec(1, 8, 0.0, 65535.0, (0.5,), (0.2,), axes=3, intensity="window", window=(-160.0, 240.0))
    assert intensity_of(spec) == make_intensity("window", (-160, 240))
    assert decoded.at(8, 1, spec).intensity.window == (-160, 240)
    assert decoded.at(8, 1).intensity.window == (-1000, 1000)


# --- size -----------------------------------------------------------------------------------------


def test_no_axis_is_kept_finer_than_the_shortest_side_needs():
    # 22 slices of 6.5 mm are 143 mm: 96 voxels along them would be 1.49 mm, so the slices stay and the rest shrinks.
    assert even_sides((22, 512, 512), (6.5, 0.43, 0.43), 143 / 96) == (22, 148, 148)
    assert even_sides((64, 64, 64), (1, 1, 1), 2.0) == (32, 32, 32)
    assert even_sides((4, 4, 4), (1, 1, 1), 0.5) == (4, 4, 4)  # never enlarged


def test_shrinking_is_a_mean_along_every_axis():
    pixels = np.random.default_rng(0).random((2, 24, 36, 48)).astype(np.float32)
    small = shrink_volume(pixels, (12, 12, 12))
    assert small.shape == (2, 12, 12, 12) and small.dtype == np.float32
    np.testing.assert_allclose(small.mean(axis=(1, 2, 3)), pixels.mean(axis=(1, 2, 3)), atol=2e-3)
    flat = np.full((1, 24, 36, 48), 40000, np.uint16)
    assert (shrink_volume(flat, (5, 7, 9)) == 40000).all()
    up = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None, None], (32, 8, 8))[None]
    np.testing.assert_allclose(shrink_volume(up, (8, 8, 8))[0, 2:-2, 4, 4], np.arange(8)[2:-2] * 4 + 1.5, atol=0.05)


def test_batches_know_the_millimetres_of_their_voxels():
    volumes = [ramp((10, 40, 40)), ramp((30, 24, 24))]
    cache = build_cache(Held(volumes, [(4.0, 1.0, 1.0), (1.0, 1.0, 1.0)]), cache_px=20)
    assert cache.axes == 3 and cache.original_px.tolist() == [[10, 40, 40], [30, 24, 24]]
    batch = cache.batch(np.array([0, 1]))
    # 40 mm along 20 voxels: 2 mm, and slices of 4 mm stay. 24 mm along 20 voxels: 1.2 mm.
    assert batch.sizes_px.tolist() == [[10, 20, 20], [25, 20, 20]]
    torch.testing.assert_close(batch.spacing_mm, torch.tensor([[4.0, 2, 2], [1.2, 1.2, 1.2]]))
    assert batch.pixels.shape == (2, 1, 25, 20, 20) and not batch.pixels[0, :, 10:].any()
    extents = batch.sizes_px * batch.spacing_mm
    torch.testing.assert_close(extents, torch.tensor([[40.0, 40, 40], [30, 24, 24]]))
    unit = batch.to_unit_range(slice(None), torch.device("cpu"))
    assert unit.min() >= 0 and unit.max() <= 1 and unit[0, 0, :10].mean() == pytest.approx(0.5, abs=0.02)
    picked = cache.select(np.array([1]))
    assert picked.batch(np.array([0])).spacing_mm.tolist() == batch.spacing_mm[1:].tolist()


def test_a_cube_in_millimetres_sets_the_finest_voxel():
    held = Held([ramp((40, 40, 40))], [(1.0, 0.5, 0.5)])
    cache = build_cache(held, cache_px=8, size_mm=16.0)
    assert cache.shapes[0].tolist() == [1, 20, 10, 10] and cache.spacing_mm[0].tolist() == [2, 2, 2]
    spec = input_spec(cache, 8, grey=False)
    assert (spec.axes, spec.size_mm, spec.intensity, spec.scale) == (3, 16.0, "robust", 65535.0)
    assert typical_px(held) == 40 and typical_px(held, 16.0) == 32  # of the finest spacing
    with pytest.raises(DamagedFile, match="--size-mm has no meaning"):
        raise_first(Held([ramp()]))


def raise_first(held: Held) -> None:
    """The reason why the first volume of a source cannot be used with a cube in millimetres."""
    source = Held([*held.volumes, ramp(), ramp()], [None, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
    raise DamagedFile(build_cache(source, cache_px=4, size_mm=4.0, max_bad=0.5).damaged[0][1])


def test_eight_bits_stay_eight_bits():
    cache = build_cache(VolumeLike(), cache_px=6)
    assert cache.flat.dtype == np.uint8 and (cache.offset, cache.scale) == (0, 255)
    assert cache.batch(np.array([0])).pixels.dtype == torch.uint8
    assert cache.spacing_mm.tolist() == [[2, 2, 2]] * 3  # of an unknown unit


class VolumeLike(Held):
    def __init__(self):
        super().__init__([ramp((12, 12, 12), "uint8", high=255)] * 3)


def test_the_cache_grows_beyond_memory_into_a_file():
    source = VolumeSource(6, size_mm=24)
    small, large = build_cache(source, cache_px=24, memory_limit_mib=0.1), build_cache(source, cache_px=24)
    assert isinstance(small.flat, np.memmap) and not isinstance(large.flat, np.memmap)
    for index in range(6):
        np.testing.assert_array_equal(small.image(index), large.image(index))


def test_a_volume_among_images_and_other_channels_are_damage(tmp_path):
    write_nifti(tmp_path / "a.nii", counted(), np.eye(4))
    write_nifti(tmp_path / "b.nii", counted(), np.eye(4))
    write_nifti(tmp_path / "c.nii", counted((5, 6, 7, 2)), np.eye(4))
    cache = build_cache(open_source(tmp_path), cache_px=8, max_bad=0.5)
    assert [name for name, _ in cache.damaged] == ["c.nii"] and "channels" in cache.damaged[0][1]


def test_settings_of_volumes_are_settled_before_anything_is_decoded():
    known = VolumeSource(6, size_mm=24)
    settled = resolve_intensity(DataConfig(size_mm=12.0), known)
    assert (settled.intensity, settled.window) == ("robust", ())
    assert resolve_intensity(DataConfig(window=(-160, 240)), known).intensity == "window"
    with pytest.raises(DataError, match="--size-mm has no meaning"):
        resolve_intensity(DataConfig(size_mm=12.0), VolumeLike())
    with pytest.raises(UsageError, match="no effect with data"):
        resolve_intensity(DataConfig(intensity="robust", window=(0, 1)), known)
    for setting in ({"intensity": "robust"}, {"window": (0.0, 1.0)}, {"size_mm": 5.0}):
        with pytest.raises(UsageError, match="no effect on images"):
            resolve_intensity(DataConfig(**setting), TissueSource(8))
