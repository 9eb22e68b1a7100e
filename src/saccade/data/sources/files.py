"""What sources of files have in common, wherever the bytes of the files lie."""

from __future__ import annotations

from abc import ABC

import numpy as np

from saccade.base.contracts import Sample
from saccade.data.sources.source import Chosen
from saccade.data.sources.volume_files import Contents


class FileSource(ABC):
    """Images or volumes in files; satisfies contracts.Source.

    ``image_masks`` has the mask files of each image that has any, ``others`` the files in formats that are not read,
    ``unlisted`` counts the images that lie there but are not in the table; ``aside`` says why a table that lies beside
    them is not used.
    """

    name: str

    def __init__(self, contents: Contents, chosen: Chosen):
        self._contents = contents
        self.records, self.unlisted, self.aside = chosen.records, chosen.unlisted, chosen.aside
        self.image_masks, self.others = contents.image_masks, contents.others
        self.axes = contents.axes(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        return self._contents.read(self.records[index], self.axes)

    def read_mask(self, index: int) -> np.ndarray | None:
        """The mask of an image as bool [Y X]; None where it has none."""
        return self._contents.read_mask(self.records[index].id)

    def images_left_aside(self, index: int) -> list[str]:
        """The other images in the file of an image: label, macro and so on."""
        return self._contents.images_left_aside(self.records[index].id)

    def content_hash(self, index: int) -> str:
        return self._contents.content_hash(self.records[index])
