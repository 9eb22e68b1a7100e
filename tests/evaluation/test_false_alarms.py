"""How often two equally good models are called different: 5 % is stated."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.evaluation import metrics
from saccade.evaluation.small_samples import FEW_UNITS


def false_alarms(units: int, studies: int, resamples: int) -> float:
    """Rate of "clear" between two models that are equally good over all patients; each patient suits one of them."""
    alarms = 0
    for number in range(studies):
        rng = np.random.default_rng([units, number])
        sizes = rng.integers(5, 40, units)
        patient = np.repeat(np.arange(units), sizes)
        truth = np.zeros(len(patient), np.int64)
        weights = metrics.resampling_weights([f"p{i}" for i in patient], resamples, number)
        difficulty = rng.normal(1, 0.8, units)
        estimates = {}
        for name in ("a", "b"):
            probability = 1 / (1 + np.exp(-(difficulty + rng.normal(0, 0.7, units))[patient]))
            correct = rng.random(len(patient)) < probability
            scores = np.stack([correct, ~correct], axis=1).astype(float)
            estimates[name] = metrics.bootstrap(
                lambda _, drawn, scores=scores, truth=truth: metrics.accuracy(scores, truth, drawn),
                [0],
                np.zeros(resamples, int),
                weights,
            )
        _, (difference,) = metrics.summarise_models(estimates, {}, units=units)
        assert difference["clear"] == (difference["low"] > 0 or difference["high"] < 0)
        alarms += difference["clear"]
    return alarms / studies


@pytest.mark.parametrize("units", [6, 10])
def test_false_alarms_are_as_rare_as_stated(units):
    """A percentile interval raises 16 % at 6 groups and 10 % at 10."""
    assert false_alarms(units, 300, 200) < 0.085


@pytest.mark.slow
@pytest.mark.parametrize("units", [6, 8, 10, 20, 60])
def test_false_alarms_of_a_thousand_studies(units):
    assert 0.03 <= false_alarms(units, 1000, 1000) <= 0.07


def test_fewer_groups_are_never_clear():
    resampled = metrics.Resampled(0.9, np.full(50, 0.9)), metrics.Resampled(0.1, np.full(50, 0.1))
    for units, clear in ((FEW_UNITS - 1, False), (FEW_UNITS, True)):
        _, (difference,) = metrics.summarise_models(dict(zip("ab", resampled)), {}, units=units)
        assert difference["clear"] is clear
