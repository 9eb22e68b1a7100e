"""The counter-based random numbers: uniform, uncorrelated along every axis, and independent of the batch."""

import numpy as np
import pytest
from scipy import stats

from saccade import runtime
from saccade.base.random import seed_number, uniforms

ITEMS = np.arange(4000)


def test_uniform_by_mean_variance_and_chi_squared():
    u = uniforms(7, 11, ITEMS, 40, "view0").ravel()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / u.size)
    assert u.var() == pytest.approx(1 / 12, rel=0.01)
    counts = np.histogram(u, bins=256, range=(0, 1))[0]
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    assert stats.chisquare(np.histogram((u * 2**20) % 1, bins=256, range=(0, 1))[0]).pvalue > 1e-4  # low bits too


def _series(axis: str) -> np.ndarray:
    """32 sequences of 4,000 numbers that differ in one word only."""
    make = {
        "slot": lambda k: uniforms(0, 0, ITEMS, 32, "a")[:, k],
        "item": lambda k: uniforms(0, 0, np.array([k]), 4000, "a")[0],
        "step": lambda k: uniforms(0, k, ITEMS, 1, "a")[:, 0],
        "seed": lambda k: uniforms(k, 0, ITEMS, 1, "a")[:, 0],
        "stream": lambda k: uniforms(0, 0, ITEMS, 1, f"view{k}")[:, 0],
    }[axis]
    return np.stack([make(k) for k in range(32)])


@pytest.mark.parametrize("axis", ["slot", "item", "step", "seed", "stream"])
def test_uncorrelated_along(axis):
    found = np.corrcoef(_series(axis))[np.triu_indices(32, 1)]
    # 496 pairs with standard error 1/sqrt(4000): the largest of them stays below five of it.
    assert np.abs(found).max() < 5 / np.sqrt(4000)
    assert found.std() == pytest.approx(1 / np.sqrt(4000), rel=0.2)


def test_neighbouring_words_share_no_numbers():
    """A sum of words instead of a hash would make (step 1, item 2) equal (step 2, item 1)."""
    u = np.concatenate([uniforms(seed, step, ITEMS[:64], 16, "a").ravel() for seed in range(4) for step in range(16)])
    assert len(np.unique(u)) == len(u)


def test_depends_on_nothing_but_the_words():
    whole = uniforms(3, 5, ITEMS, 12, "view1")
    order = np.random.default_rng(0).permutation(len(ITEMS))[:100]
    assert (uniforms(3, 5, ITEMS[order], 12, "view1") == whole[order]).all()
    assert (uniforms(3, 5, ITEMS[:10], 5, "view1") == whole[:10, :5]).all()


def test_pinned_so_that_a_resumed_run_continues():
    """A change of the hash changes every run: the numbers are part of the format."""
    found = uniforms(1, 2, np.array([3, 4]), 2, "view0")
    assert found.tolist() == [[0.7060640857454971, 0.6696187154631669], [0.40007455423001914, 0.4818574497364101]]


def test_seeds_of_other_libraries_stay_as_they_are():
    assert seed_number(0, "step", 3, 0) == runtime.torch_generator(0, "step", 3, 0).initial_seed()
    assert seed_number(0, "step", 3, 0) == 7169724637749489333
