"""``synthetic:tissue``: labelled H&E-like tiles that need no download, the same for everyone.

Tile ``i`` depends on (seed, i), the size and the number of groups, and not on how many tiles are asked for.
"""

from __future__ import annotations

import hashlib

from saccade.contracts import Record, Sample
from saccade.data.tissue import PATTERNS, draw_stain, render
from saccade.errors import UsageError, unknown
from saccade.seeds import numpy_generator

CLASSES = sorted(PATTERNS)
SPACING_UM = 1.0
DEFAULTS = {"n": 4000, "size": 64, "seed": 0, "groups": 120}


class TissueSource:
    """Tiles of eight tissue patterns from many "patients"; satisfies contracts.Source.

    count    number of tiles, in rounds of eight with one of each class; a round belongs to one patient
    size_px  side of the square tiles; larger tiles show more tissue at the same spacing (1 micrometre)
    groups   number of patients; each has a stain of its own
    The patients of the test part (30 %) are not in the training part.
    """

    def __init__(self, count: int, size_px: int = 64, seed: int = 0, groups: int = DEFAULTS["groups"]):
        if count < 1 or size_px < 16 or groups < 2:
            raise UsageError(
                "these tiles cannot be drawn",
                got=f"n={count}, size={size_px}, groups={groups}",
                expected="n >= 1, size >= 16, groups >= 2",
            )
        self.name = f"synthetic:tissue?n={count}&size={size_px}&seed={seed}&groups={groups}"
        self.axes, self.size_px, self.seed, self._groups = 2, size_px, seed, groups
        order = numpy_generator(seed, "tissue-split").permutation(groups)
        test = set(order[: max(1, round(0.3 * groups))].tolist())
        self._patients: list[int] = []
        self.records: list[Record] = []
        for index in range(count):
            turn, place = divmod(index, len(CLASSES))
            if place == 0:
                rng = numpy_generator(seed, "tissue-round", turn)
                patient, classes = int(rng.integers(groups)), rng.permutation(len(CLASSES))
            self._patients.append(patient)
            self.records.append(
                Record(
                    id=f"tissue/{index:06d}",
                    label=CLASSES[classes[place]],
                    group=f"patient-{patient:03d}",
                    split="test" if patient in test else "train",
                )
            )

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


def open_tissue(query: dict[str, str]) -> TissueSource:
    """``synthetic:tissue?n=4000&size=64&seed=0&groups=120``; what is left out has the value shown."""
    values = dict(DEFAULTS)
    for key, text in query.items():
        if key not in DEFAULTS:
            raise unknown("setting of synthetic:tissue", key, DEFAULTS)
        try:
            values[key] = int(text)
        except ValueError:
            raise UsageError(f"synthetic:tissue: {key} is a whole number", got=repr(text)) from None
    return TissueSource(values["n"], values["size"], values["seed"], values["groups"])
