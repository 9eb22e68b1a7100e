"""What is said of a run that has ended: nothing of one that learned, the reason of one that did not."""

from __future__ import annotations

import pytest

from saccade.methods.diagnosis import Settings
from saccade.train.outcome import examine_outcome

SETTINGS = Settings("lejepa", batch=64, images=2000, steps=1000, lr=1e-3)


def lines(knn, *, steps=1000, seconds=None):
    """A metrics.jsonl with probes at equal distances, and a logged step between any two of them."""
    seconds = seconds or (lambda fraction: 0.1 * fraction * steps)
    result = []
    for i, accuracy in enumerate(knn):
        step = round(i * steps / (len(knn) - 1))
        result.append({"step": step, "rank": 20.0, "knn": accuracy, "loss": 1.0, "seconds": seconds(step / steps)})
        result += [
            {"step": step + k, "loss": 1.0, "seconds": seconds((step + k) / steps)} for k in (10, 20) if step < steps
        ]
    return result


@pytest.mark.parametrize("knn", [(0.25, 0.3, 0.6, 0.8), (0.3, 0.5, 0.45), (0.6, 0.7, 0.72)])
def test_a_run_that_learned_is_not_called_ill(knn):
    assert examine_outcome(lines(knn), SETTINGS) == []


def test_a_run_at_the_level_of_random_weights_is_named():
    (diagnosis,) = examine_outcome(lines((0.25, 0.24, 0.26)), SETTINGS)
    assert diagnosis.name == "not above random weights" and "26.0 %" in diagnosis.evidence
    (diagnosis,) = examine_outcome(lines((0.25, 0.24, 0.26), steps=100), SETTINGS)
    assert diagnosis.name == "too few steps to learn anything" and "6,400 images" in diagnosis.cause


def test_six_steps_without_labels_are_too_few():
    probes = [{"step": step, "rank": 5.0, "seconds": 2.0 * step} for step in (0, 6)]
    (diagnosis,) = examine_outcome(probes, SETTINGS)
    assert diagnosis.name == "too few steps to learn anything"
    assert examine_outcome([{"step": s, "rank": 5.0, "seconds": 1.0 * s} for s in (0, 600)], SETTINGS) == []


def test_a_machine_that_became_busy_is_named():
    late = lines((0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8), seconds=lambda f: 10 * f if f < 0.3 else 3 + 40 * (f - 0.3))
    assert [d.name for d in examine_outcome(late, SETTINGS)] == ["slower than planned"]


def test_runs_from_weights_and_with_labels_have_rules_of_their_own():
    from dataclasses import replace

    same = lines((0.25, 0.24, 0.26))
    assert examine_outcome(same, replace(SETTINGS, pretrained=True)) == []
    assert examine_outcome(same, replace(SETTINGS, method="supervised")) == []
