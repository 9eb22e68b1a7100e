"""Contamination guard: overlap of the test part with pretraining or with the training part, by content and by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade.base.contracts import Record
from saccade.errors import ContaminationError


@dataclass(frozen=True)
class Overlap:
    """Overlapping test images by id, and overlapping test groups; false where there are none."""

    ids: list[str]
    groups: list[str]

    def __bool__(self) -> bool:
        return bool(self.ids or self.groups)


def seen_in_pretraining(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Files that a run was trained on, including those of the runs its weights come from."""
    return [*record["files"], *record.get("ancestors", [])] if record else []


def held_out_of(records: Iterable[Mapping[str, Any]], hashes: Iterable[str]) -> set[str]:
    """Ids of images that runs held out for evaluation; only runs trained on images among ``hashes`` count.

    Ids are names such as ``5.png``, which name other images in other data.
    """
    present = set(hashes)
    overlapping = [record for record in records if any(file["sha256"] in present for file in record["files"])]
    return {name for record in overlapping for name in record.get("held_out", [])}


def check_overlap(
    pretraining_files: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    hashes: Sequence[str],
    test: Sequence[int],
) -> Overlap:
    """Compare content hashes and groups of the test part with the files of a pretraining run.

    A group overlaps when the run had a group of that name, or any image of the group: the run may have been started
    without ``--group``.

    Parameters
    ----------
    pretraining_files
        With keys ``sha256`` and ``group``; see ``seen_in_pretraining``.
    records, hashes
        All images of the evaluation and their SHA-256.
    test
        Indices of the test part.
    """
    digests = {item["sha256"] for item in pretraining_files}
    groups = {item["group"] for item in pretraining_files if item["group"] is not None}
    groups |= {r.group for r, digest in zip(records, hashes) if r.group is not None and digest in digests}
    ids = [records[i].id for i in test if hashes[i] in digests]
    return Overlap(ids, sorted({str(records[i].group) for i in test} & groups))


def check_parts(records: Sequence[Record], hashes: Sequence[str], train: Sequence[int], test: Sequence[int]) -> Overlap:
    """Images and groups that are on both sides of a split."""
    digests = {hashes[i] for i in train}
    groups = {records[i].group for i in train} - {None}
    ids = [records[i].id for i in test if hashes[i] in digests]
    return Overlap(ids, sorted({str(records[i].group) for i in test} & {str(g) for g in groups}))


def refuse_shared(
    records: Sequence[Record], hashes: Sequence[str], train: Sequence[int], test: Sequence[int], *, allow: bool
) -> bool:
    """Raise ContaminationError where training and test part share images or groups, unless ``allow``."""
    return refuse_overlap(
        check_parts(records, hashes, train, test),
        allow=allow,
        where="training and test part share images or groups",
        hint="saccade show names the copies; give another split column",
    )


def refuse_overlap(overlap: Overlap, *, allow: bool, where: str, hint: str) -> bool:
    """Raise ContaminationError on overlap unless ``allow``; returns whether numbers must be marked."""
    if overlap and not allow:
        overlaps = []
        if overlap.ids:
            overlaps.append(f"{len(overlap.ids)} test images ({', '.join(overlap.ids[:3])}, ...)")
        if overlap.groups:
            overlaps.append(f"{len(overlap.groups)} test groups ({', '.join(overlap.groups[:3])}, ...)")
        raise ContaminationError(
            f"{where}; results would be optimistic",
            got=" and ".join(overlaps),
            expected="no image and no group in both",
            hint=f"{hint}, or mark every number with --allow-overlap",
        )
    return bool(overlap)
