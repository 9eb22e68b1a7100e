"""The part of the data that a run learns from, and what it writes down about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from saccade import runs
from saccade.config import Sections
from saccade.contracts import Source
from saccade.data.loader import ImageCache
from saccade.data.open import open_source
from saccade.data.source import select, with_split
from saccade.data.splits import draw_test, given_test
from saccade.errors import DamagedFile
from saccade.evaluation.guard import seen_in_pretraining
from saccade.train.settings import ALL_BUT_TEST, DataConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """What a run learns from, and the ids of the images that were drawn as test part and left out."""

    source: Source
    held_out: list[str]


def open_part(data: DataConfig) -> Part:
    """The source a run names, limited to its part.

    By default that is everything but the test part: the one the data bring, or, where labels but no split are
    there, the one that ``evaluate`` would draw. ``all`` takes everything, any other name is a split.
    """
    source = open_source(
        data.source,
        manifest=Path(data.manifest) if data.manifest else None,
        label=data.label or None,
        group=data.group or None,
    )
    records = source.records
    if data.split == "all":
        return Part(source, [])
    if data.split not in (None, ALL_BUT_TEST):
        return Part(with_split(source, [data.split]), [])
    if len({record.split for record in records}) > 1:
        test = given_test(records)
        return Part(select(source, [i for i, record in enumerate(records) if record.split != test]), [])
    drawn = set(draw_test(records, [_hash(source, i) for i in range(len(source))], seed=0)) if labels_in(source) else ()
    kept = [i for i in range(len(records)) if i not in drawn]
    return Part(select(source, kept), [records[i].id for i in sorted(drawn)]) if drawn else Part(source, [])


def labels_in(source: Source) -> bool:
    return len({record.label for record in source.records if record.label is not None}) > 1


def _hash(source: Source, index: int) -> str | None:
    try:
        return source.content_hash(index)
    except DamagedFile:
        return None


def describe_data(part: Part, cache: ImageCache, sections: Sections) -> dict[str, Any]:
    """data.json: what was learned from, with the hashes and groups the contamination guard needs."""
    weights = sections["model"].weights
    by_hash: dict[str, list[str]] = {}
    for record, digest in zip(cache.records, cache.hashes):
        by_hash.setdefault(digest, []).append(record.id)
    labels = Counter(record.label for record in cache.records if record.label is not None)
    return {
        "source": part.source.name,
        "images": len(part.source),
        "used": len(cache),
        "split": sections["data"].split,
        "held_out": part.held_out,
        "channels": cache.channels,
        "dtype": str(cache.flat.dtype),
        "range": [cache.offset, cache.offset + cache.scale],
        "size_px": {
            "min": [int(v) for v in cache.original_px.min(axis=0)],
            "max": [int(v) for v in cache.original_px.max(axis=0)],
        },
        "labels": dict(sorted(labels.items())),
        "groups": len({record.group for record in cache.records if record.group is not None}),
        "duplicates": [ids for ids in by_hash.values() if len(ids) > 1],
        "damaged": [{"id": name, "reason": reason} for name, reason in cache.damaged],
        "files": [
            {"id": record.id, "sha256": digest, "group": record.group}
            for record, digest in zip(cache.records, cache.hashes)
        ],
        "ancestors": seen_in_pretraining(runs.data_record(weights)) if weights else [],
    }
