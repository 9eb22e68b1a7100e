"""The contamination guard: was any of the test part seen in pretraining?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saccade.errors import ContaminationError
from saccade.store import FeatureTable


@dataclass(frozen=True)
class Overlap:
    """ids of test images whose content was seen, and test groups that were seen."""

    ids: list[str]
    groups: list[str]

    def __bool__(self) -> bool:
        return bool(self.ids or self.groups)


def check_overlap(pretraining: Mapping[str, Any], test: FeatureTable) -> Overlap:
    """Compare content hashes and groups of the test part with a run's data.json."""
    files = pretraining["files"]
    hashes = {item["sha256"] for item in files}
    groups = {item["group"] for item in files if item["group"] is not None}
    ids = [name for name, digest in zip(test.ids, test.hashes) if digest in hashes]
    return Overlap(ids, sorted({g for g in test.groups if g is not None} & groups))


def refuse_overlap(overlap: Overlap, *, allow: bool) -> bool:
    """Raise ContaminationError on overlap unless ``allow``; returns whether numbers must be marked."""
    if overlap and not allow:
        found = []
        if overlap.ids:
            found.append(f"{len(overlap.ids)} test images ({', '.join(overlap.ids[:3])}, ...)")
        if overlap.groups:
            found.append(f"{len(overlap.groups)} test groups ({', '.join(overlap.groups[:3])}, ...)")
        raise ContaminationError(
            "pretraining saw part of the test part; the figures would flatter the model",
            got=" and ".join(found),
            expected="no image and no group in both",
            hint="pretrain without them (a split column, or --set data.split=train), "
            "or mark every number with --allow-overlap",
        )
    return bool(overlap)
