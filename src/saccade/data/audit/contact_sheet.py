"""A contact sheet: many images, or three planes of some volumes, on one page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from saccade.base.contracts import Record, Sample, Source
from saccade.base.files import write_file
from saccade.base.random import numpy_generator
from saccade.data.volumes.intensity import Intensity, decide_intensity
from saccade.data.volumes.orthoslices import COLOURS, INDEX_PLANES, PLANES, pictures
from saccade.errors import DamagedFile

GAP_PX, LINE_PX = 4, 14
PERCENTILES = (1, 99)


def contact_sheet(
    source: Source, path: Path, *, columns: int = 8, rows: int = 6, tile_px: int = 96, seed: int = 0
) -> Path:
    """Write a PNG of images drawn evenly over the labels, each with its label.

    8-bit images are shown as they are; others between their own 1st and 99th percentile, marked ``*``. Of more than
    three channels the first three are shown, of two the first; the caption says so. Volumes are shown by three planes
    each (``volume_sheet``). Returns ``path``.
    """
    if source.axes == 3:
        return volume_sheet(source, path, seed=seed)
    chosen = _evenly(source, columns * rows, seed)
    head_px = 2 * LINE_PX + 2 * GAP_PX
    step_y, step_x = tile_px + LINE_PX + GAP_PX, tile_px + GAP_PX
    lines = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (max(columns * step_x + GAP_PX, 360), head_px + lines * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    rule = f"* shown from {PERCENTILES[0]} to {PERCENTILES[1]} percentile of each image"
    marked = False
    for position, index in enumerate(chosen):
        y, x = divmod(position, columns)
        top, left = head_px + y * step_y, GAP_PX + x * step_x
        try:
            pixels = source.read(index).pixels
            sheet.paste(_tile(pixels, tile_px), (left, top))
            mark = _mark(pixels)
            marked |= mark.startswith("*")
        except DamagedFile:
            mark = " (damaged)"
        label = source.records[index].label or Path(source.records[index].id).stem
        room = tile_px // 6 - len(mark)
        draw.text((left, top + tile_px), label[: max(room, 1)] + mark, fill=(60, 60, 60))
    title = f"{source.name.rstrip('/').rsplit('/', 1)[-1]}: {len(chosen):,} of {len(source):,} images"
    draw.text((GAP_PX, GAP_PX), title, fill=(0, 0, 0))
    draw.text((GAP_PX, GAP_PX + LINE_PX), rule if marked else "8-bit images as they are", fill=(60, 60, 60))
    return write_file(path, sheet.save)


def _evenly(source: Source, count: int, seed: int) -> list[int]:
    by_label: dict[str, list[int]] = {}
    for index in numpy_generator(seed, "sheet").permutation(len(source)):
        by_label.setdefault(str(source.records[int(index)].label), []).append(int(index))
    queues = [by_label[label] for label in sorted(by_label)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(source)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return sorted(chosen, key=lambda i: (str(source.records[i].label), i))


def _mark(pixels: np.ndarray) -> str:
    """What the picture leaves out: ``*`` a window of the values, then channels not shown."""
    mark = "" if pixels.dtype == np.uint8 else "*"
    if pixels.shape[0] not in (1, 3):
        mark += f" {3 if pixels.shape[0] > 3 else 1}/{pixels.shape[0]}ch"
    return mark


def _tile(pixels: np.ndarray, tile_px: int) -> Image.Image:
    """One image as large as the tile allows; enlarged without smoothing, so that real pixels are seen."""
    picture = Image.fromarray(_displayable(pixels))
    factor = tile_px / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def _displayable(pixels: np.ndarray) -> np.ndarray:
    """[C Y X] as uint8 [Y X 3] for the eye."""
    plane = pixels[:3] if pixels.shape[0] >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if plane.dtype != np.uint8:
        finite = plane[np.isfinite(plane)]
        low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 1.0)
        plane = np.nan_to_num((plane - low) / max(high - low, 1e-9), nan=0.0)
        plane = (plane.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(plane.transpose(1, 2, 0))


# --- volumes --------------------------------------------------------------------------------------

MOST_VOLUMES, WIDTH_PX = 16, 1300
GREY, DARK = (90, 90, 90), (16, 16, 18)


def volume_sheet(source: Source, path: Path, *, most: int = MOST_VOLUMES, seed: int = 0) -> Path:
    """A PNG of volumes drawn evenly over the labels: axial, coronal and sagittal plane of each. Returns ``path``.

    The planes go through the middle of the mask, or of the volume, and have the brightness that a network would
    get (``data.intensity`` as decided). The fewer volumes, the larger they are shown.
    """
    chosen = _evenly(source, most, seed)
    how = decide_intensity(source)
    columns = 1 if len(chosen) == 1 else 2 if len(chosen) <= 6 else 4
    side = (WIDTH_PX - GAP_PX * (1 + 4 * columns)) // (3 * columns)
    step_x, head = 3 * side + 4 * GAP_PX, 4 * LINE_PX + 2 * GAP_PX
    placed: list[bool] = []
    classes: set[int] = set()
    cells = []
    for index in chosen:
        try:
            sample = source.read(index)
            placed.append(sample.affine is not None)
            classes |= set() if sample.mask is None else set(np.unique(sample.mask).tolist())
        except DamagedFile:
            sample = None
        cells.append(_cell(source.records[index], sample, how, side))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    height = head + sum(max(cell.height for cell in row) + GAP_PX for row in rows)
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, height), "white")
    title = f"{source.name.rstrip('/').rsplit('/', 1)[-1]}: {len(chosen):,} of {len(source):,} volumes"
    _heading(ImageDraw.Draw(sheet), title, [f"intensity: {how.text()}", _directions(placed)], sorted(classes - {0}))
    top = head
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (GAP_PX + column * step_x, top))
        top += max(cell.height for cell in row) + GAP_PX
    return write_file(path, sheet.save)


def _heading(draw: ImageDraw.ImageDraw, title: str, lines: list[str], classes: list[int]) -> None:
    """Title and what the pictures mean, with the colours of the outlines."""
    draw.text((GAP_PX, GAP_PX), title, fill=(0, 0, 0))
    for line, text in enumerate(lines, start=1):
        draw.text((GAP_PX, GAP_PX + line * LINE_PX), text, fill=GREY)
    if not classes:
        return
    left, top = GAP_PX, GAP_PX + (len(lines) + 1) * LINE_PX
    draw.text((left, top), "outlines of the mask:", fill=GREY)
    for number in classes[: len(COLOURS)]:
        left += 130 if left == GAP_PX else 36
        draw.rectangle((left, top + 2, left + 9, top + 11), fill=COLOURS[(number - 1) % len(COLOURS)])
        draw.text((left + 13, top), str(number), fill=GREY)


def _directions(placed: list[bool]) -> str:
    anatomical = f"{', '.join(PLANES)} plane; the patient's right is on the left"
    by_index = f"planes across {', '.join(INDEX_PLANES)} as they are stored: no file says how it lies"
    if all(placed):
        return anatomical
    return f"{anatomical}; of some no file says how they lie" if any(placed) else by_index


def _cell(record: Record, sample: Sample | None, how: Intensity, side: int) -> Image.Image:
    """Three planes on a dark ground, each in its middle, and a line that says which volume it is."""
    planes, about = [], "damaged"
    if sample is not None:
        planes = pictures(sample, how, side)
        about = " x ".join(str(n) for n in sample.pixels.shape[1:])
        if sample.spacing_mm is not None:
            about += ", " + " x ".join(f"{mm:.3g}" for mm in sample.spacing_mm) + " mm"
    height = max((picture.height for picture in planes), default=side // 2)
    cell = Image.new("RGB", (3 * side + 2 * GAP_PX, height + LINE_PX), "white")
    for plane, picture in enumerate(planes):
        left = plane * (side + GAP_PX)
        cell.paste(DARK, (left, 0, left + side, height))
        cell.paste(picture, (left + (side - picture.width) // 2, (height - picture.height) // 2))
    name = record.label or record.id.rsplit("/", 1)[-1]
    room = max(4, (3 * side) // 6 - len(about) - 3)
    ImageDraw.Draw(cell).text((0, height), f"{name[:room]}   {about}", fill=GREY)
    return cell
