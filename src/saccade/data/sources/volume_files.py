"""The files of a folder or archive: images, or volumes with the files each consists of, and their masks.

Both may have masks: ``saccade.data.sources.masks`` has the layouts.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from saccade.base.contracts import Record, Sample
from saccade.data.formats import TEXT_SUFFIXES, has_suffix, is_tiff
from saccade.data.images.decode import decode, decode_mask
from saccade.data.images.tiff import images_left_aside
from saccade.data.limits import damage_named
from saccade.data.sources.masks import masks_of
from saccade.data.volumes.dicom import image_spacing_um, read_series
from saccade.data.volumes.dicom_series import find_series, is_dicom
from saccade.data.volumes.tiff_stack import is_stack
from saccade.data.volumes.volume import read_volume
from saccade.errors import DamagedFile, DataError

DETACHED = (".nhdr", ".mhd")  # headers whose voxels are in a file of the same stem


class Fetch(Protocol):
    def __call__(self, name: str, most: int | None = None) -> bytes:
        """The bytes of a file of the source, or its first ``most``. Raises DamagedFile."""
        ...


@dataclass(frozen=True)
class Case:
    """The files of one volume, its mask, and the name of its patient; of a DICOM series ``group`` is known."""

    files: tuple[str, ...]
    mask: str | None = None
    group: str | None = None


@dataclass
class Contents:
    """The files of a source, sorted out.

    images   names of the image files
    cases    files of every volume, by its id
    dicom_images  those of the images that are DICOM; ``reports`` DICOM files without an image
    image_masks  mask files of each image that has any; masks are not images of the source
    others   files in formats that are not read
    """

    source: str
    fetch: Fetch
    files: Sequence[str]
    images: list[str] = field(default_factory=list)
    cases: dict[str, Case] = field(default_factory=dict)
    dicom_images: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    image_masks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [name for name in self.files if visible(name)]
        self.images = [name for name in names if has_suffix(name, "image")]
        volumes = [name for name in names if has_suffix(name, "volume", shared=False)]
        if self.images and not any(has_suffix(name, "image", shared=False) for name in self.images) and self._stacked():
            volumes, self.images = volumes + self.images, []
        self.image_masks = masks_of(self.images)
        of_images = {mask for masks in self.image_masks.values() for mask in masks}
        self.images = [name for name in self.images if name not in of_images]
        masks = masks_of(volumes)
        taken = {mask for several in masks.values() for mask in several}
        self.cases = {name: Case((name,), masks.get(name, (None,))[0]) for name in volumes if name not in taken}
        rest = [name for name in names if not (has_suffix(name, "image") or has_suffix(name, "volume", shared=False))]
        rest = [name for name in rest if not (has_suffix(name, "table") or name.lower().endswith(TEXT_SUFFIXES))]
        dicom = [name for name in rest if is_dicom(name, self.fetch)]
        all_series, self.dicom_images, self.reports = find_series(dicom, self.fetch)
        self.images += self.dicom_images
        data_files = {posixpath.splitext(name)[0] for name in volumes if name.lower().endswith(DETACHED)}
        self.others = sorted(set(rest) - set(dicom) - {n for n in rest if posixpath.splitext(n)[0] in data_files})
        self.cases |= {series.id: Case(series.files, None, series.group) for series in all_series}

    def _stacked(self) -> bool:
        """Whether the TIFFs are volumes, by the first that can be read."""
        for name in sorted(self.images)[:3]:
            try:
                data = self.fetch(name)
            except DamagedFile:
                continue
            if is_tiff(data):
                return is_stack(data)
        return False

    @property
    def names(self) -> list[str]:
        """Ids of all images and volumes."""
        return [*self.images, *self.cases]

    def axes(self, records: Sequence[Record]) -> int:
        """2 for images, 3 for volumes. Raises DataError when the records are both."""
        volumes = [record.id for record in records if self.is_volume(record.id)]
        if volumes and len(volumes) < len(records):
            image = next(record.id for record in records if not self.is_volume(record.id))
            raise DataError(
                f"{self.source} holds images and volumes",
                got=f"{len(records) - len(volumes):,} images, e.g. {image}, and {len(volumes):,} volumes, "
                f"e.g. {volumes[0]}",
                expected="one kind",
                hint="keep them in folders of their own, or name a table that lists one kind",
            )
        return 3 if volumes else 2

    def is_volume(self, name: str) -> bool:
        return name in self.cases or has_suffix(name, "volume", shared=False)

    def group(self, name: str) -> str | None:
        """The anonymous group of the patient of a DICOM series."""
        return self._case(name).group

    def _case(self, name: str) -> Case:
        return self.cases.get(name) or Case((name,))  # a table may name a file outside the folder

    def read(self, record: Record, axes: int) -> Sample:
        """One image or volume. Raises DamagedFile, naming it, whatever its reader raises."""
        where = f"{self.source}:{record.id}"
        with damage_named(where):
            return self._read(record, axes, where)

    def _read(self, record: Record, axes: int, where: str) -> Sample:
        if axes == 2:
            data = self.fetch(record.id)
            spacing = image_spacing_um(data, where) if record.id in self.dicom_images else None
            return Sample(decode(data, where), record, spacing_um=spacing)
        case = self._case(record.id)
        if case.group is not None:
            volume = read_series(case.files, self.fetch, where)
        else:
            volume = read_volume(self.fetch(record.id), where, self._beside(record.id))
        mask = None
        if case.mask is not None:
            name = case.mask
            mask = _as_mask(read_volume(self.fetch(name), f"{self.source}:{name}", self._beside(name)).pixels, name)
            if mask.shape != volume.pixels.shape[1:]:
                raise DamagedFile(
                    f"{self.source}:{name}: the mask does not fit its volume",
                    got=f"shape {mask.shape}",
                    expected=f"{volume.pixels.shape[1:]}",
                )
        return Sample(
            volume.pixels,
            record,
            mask=mask,
            spacing_mm=volume.spacing_mm,
            affine=volume.affine,
            modality=volume.modality,
            stored_as=volume.stored_as,
            padding=volume.padding,
        )

    def read_mask(self, name: str) -> np.ndarray | None:
        """The union of the masks of an image as bool [Y X]; None where it has none. Raises DamagedFile."""
        files = self.image_masks.get(name, ())
        return union_of_masks({f"{self.source}:{file}": self.fetch(file) for file in files}) if files else None

    def images_left_aside(self, name: str) -> list[str]:
        """The other images in a TIFF: label, macro and so on; empty for files in other formats."""
        return images_left_aside(self.fetch(name)) if has_suffix(name, "image") and is_tiff(self.fetch(name, 8)) else []

    def content_hash(self, record: Record) -> str:
        """SHA-256 of the files of one image or volume; its mask is not part of it."""
        digest = hashlib.sha256()
        for name in self._case(record.id).files:
            digest.update(self.fetch(name))
        return digest.hexdigest()

    def _beside(self, name: str) -> Callable[[str], bytes]:
        return lambda other: self.fetch(posixpath.normpath(posixpath.join(posixpath.dirname(name), other)))


def visible(name: str) -> bool:
    """Whether a name is neither hidden nor a macOS shadow."""
    return not any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def union_of_masks(files: Mapping[str, bytes]) -> np.ndarray:
    """Mask files of one image, by name, as one bool mask [Y X], which may be empty. Raises DamagedFile."""
    masks = {name: decode_mask(data, name, constant=True) for name, data in files.items()}
    first = next(iter(masks.values()))
    for name, mask in masks.items():
        if mask.shape != first.shape:
            raise DamagedFile(f"{name}: the masks of an image differ in size", got=mask.shape, expected=first.shape)
    union: np.ndarray = np.logical_or.reduce(list(masks.values()))
    return union


def _as_mask(pixels: np.ndarray, name: str) -> np.ndarray:
    """[T Y X] whole numbers from 0, in the smallest type."""
    classes = np.rint(pixels[0]).astype(np.int64)
    if len(pixels) > 1 or classes.min() < 0 or not np.array_equal(classes, pixels[0]):
        raise DamagedFile(
            f"{name}: invalid mask", got=str(pixels.dtype), expected="whole numbers from 0, one for each voxel"
        )
    return classes.astype(np.uint8 if classes.max() < 256 else np.uint16)
