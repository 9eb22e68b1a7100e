"""The contamination guard: was any of the test part seen in pretraining, or does it lie in the training part too?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade.base.contracts import Record
from saccade.errors import ContaminationError


@dataclass(frozen=True)
class Overlap:
    """ids of test images whose content was seen, and test groups that were seen."""

    ids: list[str]
    groups: list[str]

    def __bool__(self) -> bool:
        return bool(self.ids or self.groups)


def seen_in_pretraining(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every file a run has learned from, those of the runs its weights came from included."""
    return [*record["files"], *record.get("ancestors", [])] if record else []


def held_out_of(records: Iterable[Mapping[str, Any]], hashes: Iterable[str]) -> set[str]:
    """Ids of images that runs held out for evaluation, of those runs that have learned from images among ``hashes``.

    Ids are names such as ``5.png``: in other data they name other images.
    """
    here = set(hashes)
    known = [record for record in records if any(file["sha256"] in here for file in record["files"])]
    return {name for record in known for name in record.get("held_out", [])}


def check_overlap(
    seen: Sequence[Mapping[str, Any]], records: Sequence[Record], hashes: Sequence[str], test: Sequence[int]
) -> Overlap:
    """Compare content hashes and groups of the test part with what a run has seen.

    A group counts as seen when the run knew it by that name, or saw any image that lies in it here: the run may
    have been started without ``--group``.
    """
    digests = {item["sha256"] for item in seen}
    groups = {item["group"] for item in seen if item["group"] is not None}
    groups |= {r.group for r, digest in zip(records, hashes) if r.group is not None and digest in digests}
    ids = [records[i].id for i in test if hashes[i] in digests]
    return Overlap(ids, sorted({str(records[i].group) for i in test} & groups))


def check_parts(records: Sequence[Record], hashes: Sequence[str], train: Sequence[int], test: Sequence[int]) -> Overlap:
    """Images and groups that lie on both sides of a split."""
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
        found = []
        if overlap.ids:
            found.append(f"{len(overlap.ids)} test images ({', '.join(overlap.ids[:3])}, ...)")
        if overlap.groups:
            found.append(f"{len(overlap.groups)} test groups ({', '.join(overlap.groups[:3])}, ...)")
        raise ContaminationError(
            f"{where}; the figures would flatter the model",
            got=" and ".join(found),
            expected="no image and no group in both",
            hint=f"{hint}, or mark every number with --allow-overlap",
        )
    return bool(overlap)
