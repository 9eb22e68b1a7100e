"""Training and test part of a source that brings none: whole groups apart, classes balanced as far as that allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from saccade.contracts import Record
from saccade.errors import DataError, UsageError
from saccade.seeds import numpy_generator


def grouped_split(records: Sequence[Record], fraction_test: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test), sorted. Images without a group count as a group of their own.

    Groups are taken in random order; each goes to the test part if that brings the class counts there nearer
    to ``fraction_test`` of every class. Both parts get at least one group.
    Raises DataError with fewer than two groups, UsageError when the fraction is not between 0 and 1.
    """
    if not 0 < fraction_test < 1:
        raise UsageError("the test part must be a fraction", got=fraction_test, expected="between 0 and 1")
    members: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault(record.group if record.group is not None else f"\0{index}", []).append(index)
    if len(members) < 2:
        raise DataError(
            "cannot split into training and test part",
            got=f"{len(members)} group",
            expected="at least 2 groups",
            hint="name a finer --group column, or give a split column",
        )
    total = Counter(str(record.label) for record in records)
    wanted = {label: fraction_test * count for label, count in total.items()}
    held: Counter[str] = Counter()
    names = sorted(members)
    test: list[int] = []
    groups_in_test = 0
    for position in numpy_generator(seed, "split").permutation(len(names)):
        inside = members[names[position]]
        counts = Counter(str(records[i].label) for i in inside)
        without = sum((wanted[label] - held[label]) ** 2 for label in counts)
        with_it = sum((wanted[label] - held[label] - n) ** 2 for label, n in counts.items())
        if with_it < without and groups_in_test < len(names) - 1:
            test += inside
            held.update(counts)
            groups_in_test += 1
    if not test:
        test = members[min(names, key=lambda name: len(members[name]))]
    chosen = np.zeros(len(records), dtype=bool)
    chosen[test] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
