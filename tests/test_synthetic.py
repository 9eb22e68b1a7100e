"""synthetic:tissue: the same for everyone, hard for colour and pixels, honest about its patients."""

from collections import Counter

import numpy as np
import pytest

from saccade.data.open import open_source
from saccade.data.synthetic import CLASSES, TissueSource
from saccade.embedding import Decoded, embed_baselines
from saccade.errors import UsageError
from saccade.evaluation.probes import knn_scores


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
        ("synthetic:tissue?n=0", "cannot be drawn"),
        ("synthetic:tisue", "did you mean 'tissue'"),
    ]:
        with pytest.raises(UsageError, match=said):
            open_source(text)
