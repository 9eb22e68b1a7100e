"""synthetic:tissue and :volume: the same for everyone, hard for colour and pixels, honest about patients."""

from collections import Counter

import numpy as np
import pytest

from saccade.data.open import open_source
from saccade.data.synthetic.images import CLASSES, VOLUME_CLASSES, TissueSource, VolumeSource
from saccade.errors import UsageError
from saccade.evaluation.knn import knn_scores
from saccade.features.embed_images import Decoded, embed_baselines


def test_a_tile_depends_on_seed_and_index_alone():
    few, many = TissueSource(24), TissueSource(400)
    assert few.records == many.records[:24]
    for index in (0, 7, 23):
        assert np.array_equal(few.read(index).pixels, many.read(index).pixels)
        assert few.content_hash(index) == many.content_hash(index)
    other = TissueSource(24, seed=1)
    assert not np.array_equal(few.read(0).pixels, other.read(0).pixels)
    assert few.content_hash(0) != other.content_hash(0)


def test_classes_are_balanced_and_patients_hold_all_of_them():
    source = TissueSource(800)
    assert set(Counter(r.label for r in source.records).values()) == {100}
    for patient in {r.group for r in source.records}:
        inside = Counter(r.label for r in source.records if r.group == patient)
        assert set(inside) == set(CLASSES) and len(set(inside.values())) == 1


def test_patients_are_on_one_side_of_the_split():
    source = TissueSource(2000)
    sides = {}
    for record in source.records:
        assert sides.setdefault(record.group, record.split) == record.split
    assert 0.15 < np.mean([r.split == "test" for r in source.records]) < 0.45


@pytest.mark.parametrize("size", [32, 64, 200])
def test_every_class_draws_at_any_size_with_its_nuclei(size):
    source = TissueSource(8, size_px=size)
    for index, record in enumerate(source.records):
        sample = source.read(index)
        assert sample.pixels.shape == (3, size, size) and sample.pixels.dtype == np.uint8
        assert sample.mask.shape == (size, size) and set(np.unique(sample.mask)) <= {0, 255}
        inside = sample.mask > 0
        assert 0.01 < inside.mean() < 0.9, record.label
        grey = sample.pixels.mean(axis=0)
        assert grey[inside].mean() < grey[~inside].mean() - 10, record.label


def test_mean_colour_does_not_tell_the_classes_apart():
    source = TissueSource(400)
    by_class = {c: [] for c in CLASSES}
    for index, record in enumerate(source.records):
        by_class[record.label].append(source.read(index).pixels.mean(axis=(1, 2)))
    means = np.array([np.mean(values, axis=0) for values in by_class.values()])
    spread = np.mean([np.std(values, axis=0) for values in by_class.values()], axis=0)
    assert (means.std(axis=0) < 0.6 * spread).all()  # classes differ less than tiles of one class


def test_pixels_and_colour_do_not_solve_it():
    decoded = Decoded(TissueSource(1600), max_bad=0.0, report=None)
    for name, table in embed_baselines(decoded, 64, grey=False).items():
        labels = np.unique(np.array(table.labels), return_inverse=True)[1]
        train, test = np.array(table.splits) == "train", np.array(table.splits) == "test"
        scores = knn_scores(table.features[train], labels[train], table.features[test], 20, len(CLASSES))
        assert (scores.argmax(axis=1) == labels[test]).mean() < 0.55, name


def test_queries():
    source = open_source("synthetic:tissue?n=9&size=40&seed=3&groups=5")
    assert len(source) == 9 and source.read(8).pixels.shape == (3, 40, 40)
    for text, said in [
        ("synthetic:tissue?sise=3", "did you mean 'size'"),
        ("synthetic:tissue?n=many", "whole number"),
        ("synthetic:tissue?n=0", "invalid settings"),
        ("synthetic:tisue", "did you mean 'tissue'"),
    ]:
        with pytest.raises(UsageError, match=said):
            open_source(text)


# --- volumes --------------------------------------------------------------------------------------


def test_a_volume_depends_on_seed_and_index_alone():
    few, many = VolumeSource(12, size_mm=24), VolumeSource(60, size_mm=24)
    assert few.records == many.records[:12]
    for index in (0, 11):
        assert np.array_equal(few.read(index).pixels, many.read(index).pixels)
        assert few.content_hash(index) == many.content_hash(index)
    other = VolumeSource(12, size_mm=24, seed=1)
    assert not np.array_equal(few.read(0).pixels, other.read(0).pixels)
    assert (
        len({few.content_hash(0), other.content_hash(0), VolumeSource(12, size_mm=24, slice_mm=3).content_hash(0)}) == 3
    )


def test_volumes_have_masks_places_and_patients_on_one_side():
    source = VolumeSource(120, size_mm=32)
    assert set(Counter(r.label for r in source.records).values()) == {20}
    sides = {}
    for record in source.records:
        assert sides.setdefault(record.group, record.split) == record.split
    for index in range(len(VOLUME_CLASSES)):
        sample = source.read(index)
        assert sample.pixels.shape == (1, 32, 32, 32) and sample.pixels.dtype == np.uint16
        assert set(np.unique(sample.mask)) == {0, 1, 2} and sample.mask.shape == sample.pixels.shape[1:]
        assert 0.005 < (sample.mask == 2).mean() < 0.06
        assert sample.pixels[0][sample.mask == 0].mean() < 0.5 * sample.pixels[0][sample.mask == 1].mean()


def test_thick_slices_are_fewer_and_know_their_distance():
    cube, thick = VolumeSource(6), VolumeSource(6, slice_mm=4)
    sample = thick.read(0)
    assert sample.pixels.shape == (1, 12, 48, 48) and sample.spacing_mm == (4, 1, 1)
    np.testing.assert_allclose(np.linalg.norm(sample.affine[:3, :3], axis=0), (1, 1, 4))
    assert np.array_equal(sample.mask, cube.read(0).mask[2::4])


def test_the_class_is_in_the_shape_and_not_in_the_numbers():
    source = VolumeSource(240, size_mm=32)
    samples = [source.read(i) for i in range(len(source))]
    labels = [r.label for r in source.records]
    assert len(set(labels)) >= 4
    train = np.array([r.split == "train" for r in source.records])

    def accuracy(features: np.ndarray) -> float:
        """Of 5 nearest neighbours on standardised features, over the test patients."""
        features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
        near = np.linalg.norm(features[~train][:, None] - features[train][None], axis=2).argsort(axis=1)[:, :5]
        names = np.array(labels)
        voted = [Counter(names[train][row]).most_common(1)[0][0] for row in near]
        return float(np.mean(names[~train] == voted))

    means = np.array([[s.pixels.mean() / np.quantile(s.pixels, 0.995)] for s in samples])
    voxels = np.array([[(s.mask == 2).sum()] for s in samples])
    assert accuracy(means) < 0.33 and accuracy(voxels) < 0.33  # chance is 0.17

    def shape(mask: np.ndarray) -> np.ndarray:
        """Spread along the principal axes, in radii of a ball of the same volume, and the emptiness of the middle."""
        places = np.argwhere(mask == 2).astype(float)
        places -= places.mean(axis=0)
        radius = np.cbrt(3 / (4 * np.pi) * len(places))
        spread = np.sqrt(np.linalg.eigvalsh(np.cov(places.T))) / radius
        return np.r_[spread, (np.linalg.norm(places, axis=1) < 0.6 * radius).mean()]

    shaped = [i for i, label in enumerate(labels) if label != "mottled"]  # which has the shape of a solid one
    samples, labels, train = [samples[i] for i in shaped], [labels[i] for i in shaped], train[shaped]
    assert accuracy(np.array([shape(s.mask) for s in samples])) > 0.8


def test_settings_of_volumes_that_mean_nothing():
    for text, said in (("size=8", "invalid settings"), ("slice_mm=9", "invalid settings"), ("slices=3", "slice_mm")):
        with pytest.raises(UsageError, match=said):
            open_source(f"synthetic:volume?{text}")
    with pytest.raises(UsageError, match="tissue"):
        open_source("synthetic:volumes")
