"""Which images the live k-NN of a run votes with and tests, and where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from saccade.base.contracts import Record
from saccade.train.monitor import LiveProbe


class Images(list):
    """Records of so many images a group, as a cache has them."""

    def __init__(self, groups: dict[str, str]):
        super().__init__(Record(f"{g}-{i}", label=label, group=g) for g, label in groups.items() for i in range(10))
        self.records = self


def probe(groups: dict[str, str], seed: int) -> LiveProbe:
    plan = SimpleNamespace(train=SimpleNamespace(seed=seed, method="dino"))
    return LiveProbe(SimpleNamespace(), Images(groups), plan)


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_nobody_votes_for_are_not_tested(seed):
    found = probe({"s1": "a", "s2": "b", "s3": "c", "s4": "a", "s5": "b"}, seed)
    voted = set(found.labels[found.train])
    assert found.labelled and found.note is None and len(voted) > 1
    assert len(found.test) and set(found.labels[found.test]) <= voted
    groups = np.array([found.cache.records[i].group for i in found.indices])
    assert not set(groups[found.train]) & set(groups[found.test])


@pytest.mark.parametrize("seed", range(5))
def test_two_groups_of_one_class_each_have_no_curve_and_it_is_said(seed):
    found = probe({"s1": "a", "s2": "b"}, seed)
    assert not found.labelled and "too few classes" in found.note
