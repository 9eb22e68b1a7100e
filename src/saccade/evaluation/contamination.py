"""Contamination guard: overlap of the test part with pretraining or with the training part, by content and by group.

Images are compared by file and by decoded pixels, groups by ``canonical_id``. Near-duplicates (recompressed, resized,
turned, mirrored, slightly cropped) and ids that nearly agree are named, not refused: they may be chance.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.base.contracts import Record
from saccade.data.images.fingerprint import bits_of, turned_forms
from saccade.errors import ContaminationError


@dataclass(frozen=True)
class Overlap:
    """Overlapping test images by id, and overlapping test groups; false where there are none."""

    ids: list[str]
    groups: list[str]

    def __bool__(self) -> bool:
        return bool(self.ids or self.groups)


NEAR_BITS = 30
"""Perceptual hashes that differ in at most so many of 143 bits are near-duplicates (docs/reference/protocols.md)."""


def canonical_id(text: str) -> str:
    """The form in which ids of patients, slides and groups are compared.

    Unicode NFC, lower case, no spaces at the ends and single ones inside, no leading zeros of a number that does not
    follow a point, no ``.0`` behind a whole number.

    Examples
    --------
    >>> [canonical_id(text) for text in ("007", "7.0", " Patient  07", "1.05", "0")]
    ['7', '7', 'patient 7', '1.05', '0']
    """
    plain = " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())
    plain = re.sub(r"^([0-9]+)\.0+$", r"\1", plain)
    return re.sub(r"(?<![0-9.])0+(?=[0-9])", "", plain)


def near_ids(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of ids that differ in canonical form but not in letters and digits, such as ``P-1`` and ``P1``."""
    letters = {re.sub(r"[\W_]", "", canonical_id(text)): text for text in sorted(set(first))}
    pairs = [(letters.get(re.sub(r"[\W_]", "", canonical_id(text))), text) for text in sorted(set(second))]
    return [(a, b) for a, b in pairs if a is not None and canonical_id(a) != canonical_id(b)]


def near_duplicates(
    files: Sequence[Mapping[str, Any]], records: Sequence[Record], perceptual: Sequence[str], test: Sequence[int]
) -> list[tuple[str, str]]:
    """Ids of a test image and of the file whose picture it nearly is, turned and mirrored forms included.

    Parameters
    ----------
    files
        With keys ``id`` and ``perceptual``; those without are left out (runs of version 0.1 have none).
    records, perceptual
        All images of the evaluation and their perceptual hashes.
    test
        Indices of the test part.
    """
    files = [file for file in files if file.get("perceptual")]
    tested = [int(i) for i in test if perceptual and perceptual[i]]
    if not files or not tested:
        return []
    bits = np.stack([bits_of(file["perceptual"]) for file in files]).reshape(len(files), -1)
    signs = 1 - 2 * bits.astype(np.float32)
    pairs = []
    for i in tested:
        forms = 1 - 2 * turned_forms(bits_of(perceptual[i])).reshape(8, -1).astype(np.float32)
        distances = ((signs.shape[1] - signs @ forms.T) / 2).min(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= NEAR_BITS:
            pairs.append((records[i].id, str(files[nearest]["id"])))
    return pairs


def doubts(
    files: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    perceptual: Sequence[str],
    test: Sequence[int],
    *,
    where: str,
) -> list[str]:
    """Sentences that name near-duplicates and near-misses of ids; see ``near_duplicates`` and ``near_ids``."""
    sentences = []
    pictures = near_duplicates(files, records, perceptual, test)
    if pictures:
        a, b = pictures[0]
        sentences.append(f"{len(pictures)} test images are near-duplicates of {where}, such as {a} of {b}.")
    groups = near_ids([str(f["group"]) for f in files if f["group"] is not None], _groups(records, test))
    if groups:
        a, b = groups[0]
        sentences.append(
            f"{len(groups)} test groups are spelled nearly like those of {where}, such as {b!r} and {a!r}."
        )
    return sentences


def _groups(records: Sequence[Record], indices: Iterable[int]) -> list[str]:
    return sorted({str(records[i].group) for i in indices if records[i].group is not None})


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
    pixels: Sequence[str] = (),
) -> Overlap:
    """Compare content hashes and groups of the test part with the files of a pretraining run.

    A group overlaps when the run had a group of that name, or any image of the group: the run may have been started
    without ``--group``.

    Parameters
    ----------
    pretraining_files
        With keys ``sha256``, ``group`` and, unless of version 0.1, ``pixels_sha256``; see ``seen_in_pretraining``.
    records, hashes
        All images of the evaluation and their SHA-256.
    test
        Indices of the test part.
    pixels
        Hashes of the decoded pixels of all images, where they are known.
    """
    digests = {item["sha256"] for item in pretraining_files}
    pictures = {item["pixels_sha256"] for item in pretraining_files if item.get("pixels_sha256")}
    same = [digest in digests or bool(pixels and pixels[i] in pictures) for i, digest in enumerate(hashes)]
    groups = {canonical_id(str(item["group"])) for item in pretraining_files if item["group"] is not None}
    groups |= {canonical_id(r.group) for r, overlaps in zip(records, same) if r.group is not None and overlaps}
    ids = [records[i].id for i in test if same[i]]
    return Overlap(ids, [group for group in _groups(records, test) if canonical_id(group) in groups])


def check_parts(
    records: Sequence[Record],
    hashes: Sequence[str],
    train: Sequence[int],
    test: Sequence[int],
    pixels: Sequence[str] = (),
) -> Overlap:
    """Images and groups that are on both sides of a split."""
    digests, pictures = {hashes[i] for i in train}, {pixels[i] for i in train if pixels}
    groups = {canonical_id(group) for group in _groups(records, train)}
    ids = [records[i].id for i in test if hashes[i] in digests or (pixels and pixels[i] in pictures)]
    return Overlap(ids, [group for group in _groups(records, test) if canonical_id(group) in groups])


def refuse_shared(
    records: Sequence[Record],
    hashes: Sequence[str],
    train: Sequence[int],
    test: Sequence[int],
    *,
    allow: bool,
    pixels: Sequence[str] = (),
) -> bool:
    """Raise ContaminationError where training and test part share images or groups, unless ``allow``."""
    return refuse_overlap(
        check_parts(records, hashes, train, test, pixels),
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
