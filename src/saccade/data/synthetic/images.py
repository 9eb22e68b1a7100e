"""``synthetic:tissue`` and ``synthetic:volume``: labelled images and volumes that need no download, the same for
everyone.

Image ``i`` depends on (seed, i), the size and the number of groups, and not on how many are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.base.random import numpy_generator
from saccade.data.synthetic import lesions
from saccade.data.synthetic.tissue import PATTERNS, draw_stain, render
from saccade.errors import UsageError, unknown

CLASSES = sorted(PATTERNS)
SPACING_UM = 1.0
DEFAULTS = {"n": 4000, "size": 64, "seed": 0, "groups": 120}
VOLUME_CLASSES = sorted(lesions.FORMS)
VOLUME_DEFAULTS = {"n": 600, "size": 48, "seed": 0, "groups": 60, "slice_mm": 1}


def _rounds(word: str, classes: Sequence[str], count: int, groups: int, seed: int) -> tuple[list[int], list[Record]]:
    """The patient of each image, and its record: rounds with one image of each class, a round from one patient.

    The patients of the test part (30 %) are not in the training part.
    """
    order = numpy_generator(seed, f"{word}-split").permutation(groups)
    test = set(order[: max(1, round(0.3 * groups))].tolist())
    patients: list[int] = []
    records: list[Record] = []
    for index in range(count):
        turn, position = divmod(index, len(classes))
        if position == 0:
            rng = numpy_generator(seed, f"{word}-round", turn)
            patient, mixed = int(rng.integers(groups)), rng.permutation(len(classes))
        patients.append(patient)
        records.append(
            Record(
                id=f"{word}/{index:06d}",
                label=classes[mixed[position]],
                group=f"patient-{patient:03d}",
                split="test" if patient in test else "train",
            )
        )
    return patients, records


class TissueSource:
    """Tiles of eight tissue patterns from many "patients"; satisfies contracts.Source.

    count    number of tiles, in rounds of eight with one of each class; a round belongs to one patient
    size_px  side of the square tiles; larger tiles show more tissue at the same spacing (1 micrometre)
    groups   number of patients; each has a stain of its own
    """

    axes = 2

    def __init__(self, count: int, size_px: int = 64, seed: int = 0, groups: int = DEFAULTS["groups"]):
        if count < 1 or size_px < 16 or groups < 2:
            raise UsageError(
                "invalid settings of synthetic:tissue",
                got=f"n={count}, size={size_px}, groups={groups}",
                expected="n >= 1, size >= 16, groups >= 2",
            )
        self.name = f"synthetic:tissue?n={count}&size={size_px}&seed={seed}&groups={groups}"
        self.size_px, self.seed, self._groups = size_px, seed, groups
        self._patients, self.records = _rounds("tissue", CLASSES, count, groups, seed)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        """One tile with its nuclei mask."""
        record = self.records[index]
        assert record.label is not None
        stain = draw_stain(numpy_generator(self.seed, "tissue-stain", self._patients[index]))
        rng = numpy_generator(self.seed, "tissue", index)
        pixels, mask = render(record.label, self.size_px, rng, stain)
        return Sample(pixels, record, spacing_um=(SPACING_UM, SPACING_UM), mask=mask)

    def content_hash(self, index: int) -> str:
        """Of the words a tile is drawn from: nothing is stored, and equal words give equal pixels."""
        words = f"tissue {self.seed} {index} {self.size_px} {self._groups}"
        return hashlib.sha256(words.encode()).hexdigest()


class VolumeSource:
    """Volumes with a lesion of one of six kinds, from many "patients"; satisfies contracts.Source.

    count     number of volumes, in rounds of six with one of each class; a round belongs to one patient
    size_mm   side of the cube; its rows and columns are 1 mm apart
    slice_mm  distance between slices: 1 is a cube of voxels, more are thick slices
    groups    number of patients; each has a scanner of its own
    The mask is 0 in air, 1 in tissue, 2 in the lesion.
    """

    axes = 3

    def __init__(self, count: int, size_mm: int = 48, seed: int = 0, groups: int = 60, slice_mm: int = 1):
        if count < 1 or not 16 <= size_mm <= 256 or groups < 2 or not 1 <= slice_mm <= size_mm // 8:
            raise UsageError(
                "invalid settings of synthetic:volume",
                got=f"n={count}, size={size_mm}, groups={groups}, slice_mm={slice_mm}",
                expected="n >= 1, size 16 to 256, groups >= 2, slice_mm from 1 to an eighth of the size",
            )
        self.name = f"synthetic:volume?n={count}&size={size_mm}&seed={seed}&groups={groups}&slice_mm={slice_mm}"
        self.size_mm, self.slice_mm, self.seed, self._groups = size_mm, slice_mm, seed, groups
        self._patients, self.records = _rounds("volume", VOLUME_CLASSES, count, groups, seed)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        """One volume with its mask, about the middle of the patient's coordinates."""
        record = self.records[index]
        assert record.label is not None
        scanner = lesions.draw_scanner(numpy_generator(self.seed, "volume-scanner", self._patients[index]))
        rng = numpy_generator(self.seed, "volume", index)
        pixels, mask = lesions.render(record.label, self.size_mm, self.slice_mm, rng, scanner)
        affine = np.diag([-1.0, -1.0, float(self.slice_mm), 1.0])
        affine[:3, 3] = [self.size_mm / 2, self.size_mm / 2, -self.size_mm / 2]
        return Sample(
            pixels,
            record,
            mask=mask,
            spacing_mm=(float(self.slice_mm), 1.0, 1.0),
            affine=affine,
            modality="MR",
            stored_as="LPS",
        )

    def content_hash(self, index: int) -> str:
        """Of the words a volume is drawn from, as for tiles."""
        words = f"volume {self.seed} {index} {self.size_mm} {self.slice_mm} {self._groups}"
        return hashlib.sha256(words.encode()).hexdigest()


def open_tissue(query: Mapping[str, str]) -> TissueSource:
    """``synthetic:tissue?n=4000&size=64&seed=0&groups=120``; what is left out has the value shown."""
    values = _settings("tissue", query, DEFAULTS)
    return TissueSource(values["n"], values["size"], values["seed"], values["groups"])


def open_volume(query: Mapping[str, str]) -> VolumeSource:
    """``synthetic:volume?n=600&size=48&seed=0&groups=60&slice_mm=1``; what is left out has the value shown."""
    values = _settings("volume", query, VOLUME_DEFAULTS)
    return VolumeSource(values["n"], values["size"], values["seed"], values["groups"], values["slice_mm"])


def _settings(word: str, query: Mapping[str, str], defaults: Mapping[str, int]) -> dict[str, int]:
    values = dict(defaults)
    for key, text in query.items():
        if key not in defaults:
            raise unknown(f"setting of synthetic:{word}", key, defaults)
        try:
            values[key] = int(text)
        except ValueError:
            raise UsageError(f"synthetic:{word}: {key} is a whole number", got=repr(text)) from None
    return values
