"""Three planes through one point of a volume, with maps over them, as one picture. Pillow and numpy, no torch.

Arrays are [T Y X] in LPS order (data/orientation): the patient's right is on the left of the axial and the coronal
plane, anterior is up in the axial plane, superior is up in the others. All three planes have one scale in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.viz.overlays import CELL_PX, GAP_PX, INK, LINE_PX, TEXT_PX, colours, opacity, png_of, with_colour_bar
from saccade.viz.patch_maps import ColourScale

PLANES = ("axial", "coronal", "sagittal")
AXES = "zyx"
LETTERS_PX = 150  # the longest caption
BRIGHT, DARK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """The volume, and the point that the planes pass through.

    Parameters
    ----------
    volume : ndarray
        [T Y X] in 0..1.
    point : tuple of int
        (z, y, x) in voxels.
    spacing_mm : tuple of float
        (z, y, x).
    placed : bool
        The file has an orientation, so that planes have names.
    box : tuple of float, optional
        The query patch in voxels: front, top, left, depth, height, width; None is the class token.
    """

    volume: np.ndarray
    point: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    placed: bool
    box: tuple[float, ...] | None = None

    def plane(self, values: np.ndarray, axis: int) -> np.ndarray:
        """The slice of ``values`` [T Y X] through the point, superior up."""
        slice_: np.ndarray = np.take(values, self.point[axis], axis=axis)
        return slice_[::-1] if self._turned(axis) else slice_

    def _turned(self, axis: int) -> bool:
        return axis > 0 and self.placed  # z grows to the head, rows grow downwards

    def name(self, axis: int) -> str:
        where = f"{AXES[axis]} = {self.point[axis]}"
        return f"{PLANES[axis]}, {where}" if self.placed else where

    def size(self, axis: int) -> tuple[int, int]:
        """(width, height) of a plane in pixels."""
        extent = [n * mm for n, mm in zip(self.volume.shape, self.spacing_mm)]
        scale = CELL_PX / max(extent)
        tall, wide = (max(1, round(extent[other] * scale)) for other in range(3) if other != axis)
        return wide, tall

    def mark(self, picture: Image.Image, axis: int) -> None:
        """Outline the query patch where the plane cuts it."""
        if self.box is None:
            return
        rows, columns = (other for other in range(3) if other != axis)
        down, across = (side / self.volume.shape[a] for side, a in zip(picture.size[::-1], (rows, columns)))
        top, left = self.box[rows] * down, self.box[columns] * across
        tall, wide = self.box[3 + rows] * down, self.box[3 + columns] * across
        if self._turned(axis):
            top = picture.height - top - tall
        draw = ImageDraw.Draw(picture)
        draw.rectangle((left - 1, top - 1, left + wide + 1, top + tall + 1), outline=DARK)
        draw.rectangle((left, top, left + wide, top + tall), outline=BRIGHT)


def planes_panel(scene: Scene, maps: Mapping[str, np.ndarray], captions: Sequence[str], scale: ColourScale) -> bytes:
    """PNG: a column with the volume, then one for every map [T Y X]; one row per plane.

    All maps have one colour scale. ``captions`` has one line for the volume and one for each map.
    """
    sizes = [scene.size(axis) for axis in range(3)]
    pitch = max(LETTERS_PX, *(wide for wide, _ in sizes)) + GAP_PX
    head, tall = 2 * LINE_PX + GAP_PX // 2, sum(tall + LINE_PX + GAP_PX for _, tall in sizes)
    sheet = Image.new("RGBA", (pitch * (1 + len(maps)) - GAP_PX, head + tall), (0, 0, 0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    names = ["volume", *maps]
    for column, (name, caption) in enumerate(zip(names, captions, strict=True)):
        for line, text in enumerate((name, caption)):
            draw.text((column * pitch, line * LINE_PX), text, fill=INK, font=font)
    strengths = [scale.strength(values) for values in maps.values()]
    top = head
    for axis, (_, high) in enumerate(sizes):
        pictures = [_grey(scene, axis), *(_overlay(scene, strength, axis) for strength in strengths)]
        for column, picture in enumerate(pictures):
            scene.mark(picture, axis)
            sheet.paste(picture, (column * pitch, top))
        draw.text((0, top + high + 2), scene.name(axis), fill=INK, font=font)
        top += high + LINE_PX + GAP_PX
    return png_of(with_colour_bar(sheet, scale))


def _grey(scene: Scene, axis: int) -> Image.Image:
    plane = np.clip(scene.plane(scene.volume, axis) * 255, 0, 255).round().astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return picture.resize(scene.size(axis), Image.Resampling.BICUBIC).convert("RGB")


def _overlay(scene: Scene, strength: np.ndarray, axis: int) -> Image.Image:
    fine = Image.fromarray(np.ascontiguousarray(scene.plane(strength, axis), dtype=np.float32))
    fine = fine.resize(scene.size(axis), Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(fine), 0, 1)
    alpha = opacity(share)[..., None]
    mixed = np.asarray(_grey(scene, axis)) * (1 - alpha) + colours(share) * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))
