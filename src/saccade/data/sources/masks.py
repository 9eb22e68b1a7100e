"""Masks of images and volumes: the layouts that are recognised, by the names of the files alone."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from saccade.errors import UsageError

INSIDE = ("masks", "mask", "segmentations", "segmentation")
"""Folders of masks inside the folder of the images, or beside it."""
BESIDE = {
    **dict.fromkeys(
        ("images", "image", "imgs", "img"),
        (*INSIDE, "labels", "label", "annotations", "groundtruth", "ground_truth", "gt"),
    ),
    "imagestr": ("labelstr",),
    "imagests": ("labelsts",),
}
"""Folder of images or volumes: folders beside it that may hold their masks, in lower case."""
ENDINGS = ("_masks", "_mask", "_segmentation", "_seg", "_gt", "-mask", "-seg")
"""Endings of the stem of a mask; several masks of one image may be numbered (``_mask_1``)."""
AUTO = "auto"
"""In place of a folder of masks: those that are recognised beside the images."""
USE_OF_MASKS = f"attend and evaluate compare attention with them: --masks {AUTO}"


def stem_of(name: str) -> str:
    """The name in lower case without its suffix (of ``.nii.gz`` both).

    Examples
    --------
    >>> stem_of("A/1.nii.gz"), stem_of("A/1.5.png")
    ('a/1', 'a/1.5')
    """
    return posixpath.splitext(name.lower().removesuffix(".gz"))[0]


def without_ending(stem: str) -> str:
    """The stem without the ending of a mask.

    Examples
    --------
    >>> without_ending("a (1)_mask_2"), without_ending("a_2")
    ('a (1)', 'a_2')
    """
    match = re.fullmatch(f"(.*[^/])(?:{'|'.join(ENDINGS)})(?:_[0-9]+)?", stem, re.DOTALL)
    return match[1] if match else stem


def masks_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The masks of every image or volume that has any: in a folder of masks, or beside it with one of ENDINGS.

    Examples
    --------
    >>> masks_of(["a/images/1.jpg", "a/masks/1.png", "b/2.png", "b/2_mask.png", "b/2_mask_1.png"])
    {'a/images/1.jpg': ('a/masks/1.png',), 'b/2.png': ('b/2_mask.png', 'b/2_mask_1.png')}
    """
    names = list(names)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_stem[stem_of(name)].append(name)
    masks: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem = stem_of(name)
        base = without_ending(stem)
        stems = [place for one in dict.fromkeys((stem, base)) for place in _image_stems(one)]
        stems += [base] if base != stem else []
        for image in dict.fromkeys(image for one in stems for image in by_stem.get(one, ())):
            masks[image] = (*masks.get(image, ()), name)
    as_masks = {name for several in masks.values() for name in several}
    return {image: several for image, several in masks.items() if image not in as_masks}


def _image_stems(stem: str) -> list[str]:
    """Stems of the images that a file with this stem may be the mask of, by the folders of masks in its path."""
    parts = PurePosixPath(stem).parts
    stems: list[str] = []
    for depth, part in enumerate(parts[:-1]):
        if part in INSIDE:
            stems.append("/".join((*parts[:depth], *parts[depth + 1 :])))
        folders = [images for images, beside in BESIDE.items() if part in beside]
        stems += ["/".join((*parts[:depth], images, *parts[depth + 1 :])) for images in folders]
    return stems


class MaskFolder:
    """A folder of masks; each folder in it is listed once.

    Raises
    ------
    UsageError
        The folder does not exist.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UsageError("the folder of masks does not exist", got=folder, hint=f"--masks FOLDER or --masks {AUTO}")
        self.folder = folder
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}

    def masks_of(self, name: str) -> list[Path]:
        """The masks of an image: called like it, with or without an ending.

        Parameters
        ----------
        name : str
            Path of the image, or its id in a source. Of several files the masks are those below the same folders.
        """
        stem = PurePosixPath(stem_of(PurePosixPath(name).as_posix()))
        # ids have folders in common with the masks, such as CLASS/x.png; try the longest such path first
        for start in range(len(stem.parts)):
            parent = self.folder.joinpath(*PurePosixPath(name).parts[start:-1])
            if matches := self._listed(parent).get(stem.name):
                return matches
        return []

    def _listed(self, parent: Path) -> dict[str, list[Path]]:
        """The files of a folder by their stems, with and without the ending of a mask."""
        if parent not in self._by_stem:
            by_stem: dict[str, list[Path]] = defaultdict(list)
            files = sorted(parent.iterdir()) if parent.is_dir() else []
            for path in files:
                if path.is_file() and not path.name.startswith("."):
                    stem = stem_of(path.name)
                    for key in {stem, without_ending(stem)}:
                        by_stem[key].append(path)
            self._by_stem[parent] = by_stem
        return self._by_stem[parent]


def masks_beside(image: Path) -> list[Path]:
    """The masks that are recognised of one image or volume file, by the files around it."""
    image = image.absolute()
    root, folders = image.parent, [image.parent]
    for ancestor in image.parents:
        if ancestor.name.lower() in BESIDE and ancestor.parent.is_dir():
            root = ancestor.parent
            below = image.parent.relative_to(ancestor)
            beside = BESIDE[ancestor.name.lower()]
            folders += [folder / below for folder in root.iterdir() if folder.name.lower() in beside]
            break
    folders += [folder for folder in image.parent.iterdir() if folder.name.lower() in INSIDE]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if path.is_file()]
    names = [path.relative_to(root).as_posix() for path in files]
    return [root / name for name in masks_of(names).get(image.relative_to(root).as_posix(), ())]


def masks_for(image: Path, masks: str | Path) -> Sequence[Path]:
    """The masks of an image: a file, those of a folder, or those beside it (``auto``).

    Raises UsageError where there is none.
    """
    path = Path(masks)
    if path.is_file():
        return [path]
    files = masks_beside(image) if str(masks) == AUTO else MaskFolder(path).masks_of(image.name)
    if not files:
        where = "beside the image" if str(masks) == AUTO else f"in {path}"
        raise UsageError(f"{image.name} has no mask {where}", hint="name the file: --mask FILE")
    return files
