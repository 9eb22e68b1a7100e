"""Nested cross-validation keeps patients apart, and heads over slides learn what is planted."""

import numpy as np
import pytest
import torch

from saccade.base.contracts import InputSpec
from saccade.errors import EvaluationError
from saccade.evaluation.nested_cv import Cohort, NestedConfig, draws, inner_folds, nested, outer_folds
from saccade.hierarchy.embed_regions import Reader
from saccade.hierarchy.end_to_end import Regions, fit_end_to_end, vectors_as_grids
from saccade.hierarchy.heads import KINDS, Bags, GatedAttention, HeadConfig, fit_head, pad_bags
from saccade.hierarchy.learners import EndToEndLearner, HeadLearner, MeanLearner
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import LoadedModel

CLASSES = ("no", "yes")


def cohort(slides: int = 40, patients: int = 20, seed: int = 0, seen: float = 0.0) -> Cohort:
    rng = np.random.default_rng(seed)
    own = rng.integers(patients, size=slides)
    labels = (own % 2).astype(np.int64)
    return Cohort(labels, [f"p{i}" for i in own], CLASSES, rng.random(slides) >= seen)


class Spy:
    """A learner that keeps what it was given."""

    name, choices = "spy", (0.1, 1.0)

    def __init__(self):
        self.calls = []

    def scores(self, train, labels, test, *, choice, seed):
        self.calls.append((train, labels, test))
        return np.random.default_rng(len(self.calls)).random((len(test), 2))


@pytest.mark.parametrize("seed", range(3))
def test_no_patient_trains_and_is_tested(seed):
    """Neither in outer nor in inner folds, at any share of the labels; every slide is tested once."""
    found, spy = cohort(seed=seed), Spy()
    config = NestedConfig(folds=4, inner=3, fractions=(1.0, 0.5), repeats=2, bootstrap=20)
    result = nested([spy], found, config)
    groups = np.array(found.groups)
    assert len(spy.calls) > 4 * 3
    for train, labels, test in spy.calls:
        assert not set(groups[train]) & set(groups[test])
        assert np.array_equal(labels, found.labels[train])
    tested = np.concatenate([test for _, test in outer_folds(found, 4, 0)])
    assert sorted(tested) == list(range(len(groups)))
    assert {row["fraction"] for row in result.rows} == {1.0, 0.5}


class Knowing:
    """A learner that knows the answer."""

    name, choices = "knowing", (1.0,)

    def __init__(self, labels, classes=2):
        self.labels, self.classes = labels, classes

    def scores(self, train, labels, test, *, choice, seed):
        assert len(set(labels)) == self.classes
        return np.eye(self.classes)[self.labels[test]]


@pytest.mark.parametrize(("patients", "positive"), [(6, 3), (12, 3), (30, 3)])
def test_resamples_that_cannot_be_measured_say_nothing(patients, positive):
    """A bootstrap of one class has no AUROC. It once counted as 0, and the best of heads as 0 to 1."""
    labels = (np.arange(patients) < positive).astype(np.int64)
    found = Cohort(labels, [f"p{i}" for i in range(patients)], CLASSES, np.ones(patients, bool))
    result = nested([Knowing(labels)], found, NestedConfig(fractions=(1.0,), bootstrap=2000))
    row = next(row for row in result.rows if row["metric"] == "auroc")
    assert (row["mean"], row["low"], row["high"]) == (1.0, 1.0, 1.0)
    share = result.protocol["unmeasured"]
    expected = (1 - positive / patients) ** patients + (positive / patients) ** patients
    assert expected - 0.02 < share  # and those in which no fold has both
    assert f"left out ({share:.1%})" in result.protocol["text"]
    assert "Only 3 patients tested are of class" in result.protocol["text"]


def test_patients_with_slides_of_both_classes_leave_none_out():
    """Whole patients apart, a rare class could fall into one fold, and its training part then lacks it."""
    drawn = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        own, labels = rng.integers(6, size=18), (rng.random(18) < 0.25).astype(np.int64)
        found = Cohort(labels, [f"p{i}" for i in own], CLASSES, np.ones(18, bool))
        try:
            folds = outer_folds(found, 5, 0)
        except EvaluationError:
            continue
        drawn += 1
        for train, test in folds:
            assert set(labels[train]) == set(labels[test]) == {0, 1}
    assert drawn > 150


def test_slides_seen_in_pretraining_only_train():
    found = cohort(seen=0.4)
    for train, test in outer_folds(found, 3, 0):
        assert found.testable[test].all()
        assert not {found.groups[i] for i in test} & {found.groups[i] for i in train}
    with pytest.raises(EvaluationError, match="too few patients"):
        outer_folds(Cohort(found.labels, found.groups, CLASSES, np.zeros(40, bool)), 3, 0)


def test_inner_folds_show_all_classes_on_both_sides():
    found = cohort()
    for a, b in inner_folds(found.labels, np.array(found.groups), 3, 2):
        assert set(found.labels[a]) == set(found.labels[b]) == {0, 1}
    assert inner_folds(np.array([0, 0, 1]), np.array(["a", "b", "c"]), 3, 2) == []


def test_draws_are_shares_of_the_training_part():
    found = cohort(80, 40)
    folds = outer_folds(found, 4, 0)
    for draw in draws(found, folds, NestedConfig(fractions=(0.25,), repeats=3)):
        for (train, _), picked in zip(folds, draw.train):
            assert set(picked) <= set(train) and 0.1 < len(picked) / len(train) < 0.4
            assert set(found.labels[picked]) == {0, 1}


def planted(arrangement: bool, slides: int = 40, seed: int = 0) -> tuple[Bags, np.ndarray]:
    """Grids of 3 x 4 regions. Two kinds of region, as many of each; with ``arrangement`` the label is where they lie,
    without it which kind there is once."""
    rng = np.random.default_rng(seed)
    labels = np.arange(slides) % 2
    grids = []
    for label in labels:
        x = 0.3 * rng.normal(size=(9, 3, 4))
        x[-1] = 1
        if arrangement:
            x[0, :, :2] += 1 if label else -1
            x[0, :, 2:] -= 1 if label else -1
        else:
            y, column = rng.integers(3), rng.integers(4)
            x[1 + label, y, column] += 4
        if not arrangement:  # a place where nothing is, whatever stands there
            x[-1, 2, 3], x[0, 2, 3] = 0, 100 * label
        grids.append(x.astype(np.float32))
    return pad_bags(grids), labels


@pytest.mark.parametrize("kind", KINDS)
def test_heads_learn_what_one_region_shows(kind):
    bags, labels = planted(arrangement=False)
    learner = HeadLearner(kind, bags, 2, HeadConfig(kind=kind, steps=60))
    scores = learner.scores(np.arange(30), labels[:30], np.arange(30, 40), choice=0.01, seed=0)
    assert (scores.argmax(axis=1) == labels[30:]).mean() >= 0.9


def test_only_what_knows_places_learns_an_arrangement():
    """Attention pooling and the mean see a bag; the transformer sees where its members lie."""
    bags, labels = planted(arrangement=True, slides=110)
    train, test = np.arange(80), np.arange(80, 110)
    transformer = HeadLearner("t", bags, 2, HeadConfig(kind="transformer"))
    right = transformer.scores(train, labels[train], test, choice=0.01, seed=0).argmax(axis=1) == labels[test]
    assert right.mean() > 0.8
    mean = MeanLearner("m", bags.means(), 2)
    guessed = mean.scores(train, labels[train], test, choice=1.0, seed=0).argmax(axis=1) == labels[test]
    assert guessed.mean() < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_weights_sum_to_one_and_leave_out_what_is_not_there(kind):
    bags, labels = planted(arrangement=False, slides=8)
    head = fit_head(bags, labels, 2, HeadConfig(kind=kind, steps=5), seed=0)
    weights = head.weights(bags)
    assert weights.shape == (8, 3, 4)
    assert np.allclose(weights.sum(axis=(1, 2)), 1, atol=1e-5) and np.abs(weights[:, 2, 3]).max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_has_no_influence(kind):
    bags, labels = planted(arrangement=False, slides=8)
    head = fit_head(bags, labels, 2, HeadConfig(kind=kind, steps=5), seed=0)
    other = bags.grids.copy()
    other[:, :-1, 2, 3] = -7
    padded = np.pad(bags.grids, ((0, 0), (0, 0), (0, 2), (0, 1)))
    for changed in (other, padded):
        assert np.allclose(head.scores(Bags(changed)), head.scores(bags), atol=1e-5)
    assert np.allclose(bags.means(), Bags(other).means())


def test_same_seed_same_head():
    bags, labels = planted(arrangement=False, slides=8)
    state = torch.random.get_rng_state()
    one, two = (fit_head(bags, labels, 2, HeadConfig(steps=3), seed=1).scores(bags) for _ in range(2))
    assert np.array_equal(one, two) and torch.equal(state, torch.random.get_rng_state())
    assert isinstance(fit_head(bags, labels, 2, HeadConfig(steps=1), seed=1).network, GatedAttention)


def test_differences_are_paired_and_marked():
    found = cohort(60, 30)
    rng = np.random.default_rng(0)
    good = found.labels[:, None] + 0.1 * rng.normal(size=(60, 3))
    learners = [MeanLearner("good", good, 2), MeanLearner("noise", rng.normal(size=(60, 3)), 2)]
    result = nested(learners, found, NestedConfig(bootstrap=100, repeats=2))
    rows = {(r["model"], r["fraction"], r["metric"]): r for r in result.rows}
    assert rows["good", 1.0, "auroc"]["mean"] > 0.95
    assert all(r["low"] <= r["mean"] + 0.02 and r["mean"] - 0.02 <= r["high"] for r in rows.values())
    clear = [d for d in result.differences if d["metric"] == "auroc"]
    assert all(d["clear"] and d["difference"] > 0.2 for d in clear)
    assert "whole patients apart" in result.protocol["text"]


# --- the region level trained on -----------------------------------------------------------------


def regions(slides: int, seed: int = 0) -> tuple[Reader, list[Regions], np.ndarray]:
    """Five regions a slide, of 4 x 4 tiles; the label is on which side of each region the first channel is high, so a
    bag of tiles says nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(slides) % 2
    found = []
    for label in labels:
        grids = 0.3 * rng.normal(size=(5, 5, 4, 4)).astype(np.float32)
        grids[:, 0, :, :2] += 1 if label else -1
        grids[:, 0, :, 2:] -= 1 if label else -1
        grids[:, -1] = 1
        cells = rng.permutation(np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1).reshape(-1, 2))[:5]
        found.append(Regions(torch.from_numpy(grids), cells))
    network = build("grid_nano_w32", channels=5, size_px=4, seed=0).eval()
    spec = InputSpec(5, 4, 0.0, 1.0, (0.0,) * 5, (1.0,) * 5, grid=True)
    return Reader(LoadedModel(network, spec, "r"), "r"), found, labels


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_vectors_of_regions_lie_where_the_regions_lie():
    reader, slides, _ = regions(3)
    slides[1] = slides[1].some(np.array([0, 2]))
    with torch.inference_mode():
        grids = vectors_as_grids(reader.model.backbone, slides)
        for s, one in enumerate(slides):
            alone = reader.model.backbone(one.grids).cls
            y, x = one.cells.T
            assert torch.allclose(grids[s, :-1, y, x].T, alone, atol=1e-5)
            assert grids[s, -1].sum() == len(one.cells) and (grids[s, -1, y, x] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_region_level_moves_only_where_it_is_asked_to(kind):
    """What the hierarchy holds stays as it is; with a rate of 0 the copy does too."""
    reader, slides, labels = regions(6)
    before = state_of(reader.model.backbone)
    config, chance = HeadConfig(kind=kind, steps=3), torch.random.get_rng_state()
    moved, again, resting = (
        fit_end_to_end(reader, slides, labels, 2, config, region_lr=rate, seed=0) for rate in (1e-3, 1e-3, 0.0)
    )
    after = state_of(reader.model.backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], value) for name, value in state_of(resting.network).items())
    changed = [name for name, value in state_of(moved.network).items() if not torch.equal(before[name], value)]
    assert len(changed) > len(before) / 2
    assert np.array_equal(moved.scores(slides), again.scores(slides))
    assert torch.equal(chance, torch.random.get_rng_state())


def test_trained_on_it_learns_an_arrangement_inside_regions():
    reader, slides, labels = regions(60)
    train, test = np.arange(40), np.arange(40, 60)
    config = HeadConfig(kind="abmil", steps=120)
    learner = EndToEndLearner("t", reader, slides, 2, config)
    right = learner.scores(train, labels[train], test, choice=1e-3, seed=0).argmax(axis=1) == labels[test]
    assert right.mean() > 0.9
    means = np.concatenate([one.grids.mean(dim=(0, 2, 3), keepdim=True)[:, :, 0, 0].numpy() for one in slides])
    bag = MeanLearner("m", means, 2).scores(train, labels[train], test, choice=1.0, seed=0)
    assert (bag.argmax(axis=1) == labels[test]).mean() < 0.8
