"""Training and test part of a source that brings none: whole groups apart, classes balanced as far as that allows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from saccade.base.contracts import Record
from saccade.base.random import numpy_generator
from saccade.errors import DataError, UsageError


def unit_names(groups: Sequence[str | None]) -> list[str]:
    """Names of what must stay together: the group of an image, or the image itself where it has none."""
    return [group if group is not None else f"\0{i}" for i, group in enumerate(groups)]


def patients_of(records: Sequence[Record], hashes: Sequence[str]) -> list[str]:
    """Whose each slide is: the patient, or the slide where none is named. Copies of one file are of one patient, and
    patients who share a file are one."""
    _, files = np.unique(list(hashes), return_inverse=True)
    names, name_numbers = np.unique([record.group or record.id for record in records], return_inverse=True)
    links = coo_array((np.ones(len(files)), (name_numbers, len(names) + files)), shape=(len(names) + len(files),) * 2)
    part = connected_components(links, directed=False)[1]
    first = {number: str(name) for number, name in reversed(list(zip(part, names)))}
    return [first[part[number]] for number in name_numbers]


def grouped_split(records: Sequence[Record], fraction_test: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split into training and test part with whole groups on one side.

    Groups are visited in random order; each goes to the test part if that brings the class counts there nearer to
    ``fraction_test`` of every class. Images without a group count as a group of their own.

    Parameters
    ----------
    records : sequence of Record
    fraction_test : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    train, test : ndarray
        Sorted indices. Both parts get at least one group.

    Raises
    ------
    DataError
        There are fewer than two groups.
    UsageError
        ``fraction_test`` is out of range.

    Examples
    --------
    >>> records = [Record(id=str(i), label="ab"[i % 2], group=str(i // 4)) for i in range(40)]
    >>> train, test = grouped_split(records, 0.3, seed=0)
    >>> len(test), {records[i].group for i in train} & {records[i].group for i in test}
    (12, set())
    """
    if not 0 < fraction_test < 1:
        raise UsageError("the test fraction is out of range", got=fraction_test, expected="between 0 and 1")
    members: dict[str, list[int]] = {}
    for index, name in enumerate(unit_names([record.group for record in records])):
        members.setdefault(name, []).append(index)
    if len(members) < 2:
        raise DataError(
            "cannot split into training and test part",
            got=f"{len(members)} group",
            expected="at least 2 groups",
            hint="name a finer --group column, or give a split column",
        )
    total = Counter(str(record.label) for record in records)
    target = {label: fraction_test * count for label, count in total.items()}
    held: Counter[str] = Counter()
    names = sorted(members)
    test: list[int] = []
    groups_in_test = 0
    for position in numpy_generator(seed, "split").permutation(len(names)):
        inside = members[names[position]]
        counts = Counter(str(records[i].label) for i in inside)
        without = sum((target[label] - held[label]) ** 2 for label in counts)
        with_it = sum((target[label] - held[label] - n) ** 2 for label, n in counts.items())
        if with_it < without and groups_in_test < len(names) - 1:
            test += inside
            held.update(counts)
            groups_in_test += 1
    if not test:
        test = members[min(names, key=lambda name: len(members[name]))]
    chosen = np.zeros(len(records), dtype=bool)
    chosen[test] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


TEST_SHARE = 0.3


@dataclass(frozen=True)
class Parts:
    """Indices of the labelled images to learn a probe from and to test it on, and in words how they were parted."""

    train: np.ndarray
    test: np.ndarray
    text: str


def given_test(records: Sequence[Record]) -> str | None:
    """The split that is the test part: ``test``; where there is none but ``train``, ``val``."""
    splits = {record.split for record in records}
    if "test" in splits and len(splits) > 1:
        return "test"
    return "val" if {"train", "val"} <= splits else None


def draw_test(records: Sequence[Record], hashes: Sequence[str | None], seed: int) -> list[int]:
    """A test part of 30 % for images that bring none: labelled ones, whole groups, copies kept together.

    Empty where that cannot be done: fewer than two classes or groups.
    """
    labelled = [i for i, record in enumerate(records) if record.label is not None]
    copies = Counter(hashes[i] for i in labelled)
    candidates = []
    for i in labelled:
        digest, record = hashes[i], records[i]
        copied = record.group is None and digest is not None and copies[digest] > 1
        candidates.append(dataclasses.replace(record, group=f"copy of {digest}") if copied else record)
    units = set(unit_names([record.group for record in candidates]))
    if len({record.label for record in candidates}) < 2 or len(units) < 2:
        return []
    return [labelled[i] for i in grouped_split(candidates, TEST_SHARE, seed)[1]]


def choose_parts(
    records: Sequence[Record], hashes: Sequence[str | None], *, seed: int, held_out: Collection[str] = ()
) -> Parts:
    """Training and test part for an evaluation: the split given, what pretraining held out, or a drawn one.

    Raises DataError when there are not enough labels to part.
    """
    labelled = np.array([record.label is not None for record in records])
    if labelled.sum() < 2:
        raise DataError(
            "evaluation needs labels, and these images have none",
            hint="name a table with --labels CSV (columns path,label,group), or use one folder a class",
        )
    name = given_test(records)
    test = labelled & np.array([name is not None and record.split == name for record in records])
    # What is not the test part is what runs learn from, whatever it is called; of a val split only where that is all.
    rest, val = labelled & ~test, np.array([record.split == "val" for record in records])
    train = rest & ~val if (rest & ~val).any() else rest
    if train.any() and test.any():
        text = "the split given with the data" + ("" if name == "test" else f" ({name}: there is no test)")
        return Parts(np.flatnonzero(train), np.flatnonzero(test), text)
    kind = "whole groups" if any(record.group is not None for record in records) else "images (no groups are known)"
    held = np.array([record.id in held_out for record in records])
    if (labelled & held).any() and (labelled & ~held).any():
        text = f"30 % of the {kind}, held out from pretraining"
        return Parts(np.flatnonzero(labelled & ~held), np.flatnonzero(labelled & held), text)
    inside = np.zeros(len(records), dtype=bool)
    inside[draw_test(records, hashes, seed)] = True
    if not inside.any():
        raise DataError(
            "cannot split into training and test part",
            expected="at least two classes and two groups",
            hint="name a finer --group column, or give a split column",
        )
    text = f"30 % of the {kind} drawn as test part, seed {seed}"
    return Parts(np.flatnonzero(labelled & ~inside), np.flatnonzero(inside), text)
