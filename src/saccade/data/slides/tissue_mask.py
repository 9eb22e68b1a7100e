"""Where a slide has tissue, pen marks, and parts out of focus, on one small grid.

Tissue: Otsu's threshold (1979) on saturation, on darkness where a bright slide has no colours, on log brightness where
the background is dark; then morphology.
A slide that is all tissue has one hump, not two, and Otsu would cut it in half: the threshold stays within bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from saccade.data.slides.slide import DARK, Slide
from saccade.errors import DamagedFile, DataError

LONGEST_PX = 1024
SATURATION = (0.04, 0.15)  # bounds of the threshold; glass and paper lie below, stained tissue above
DARKNESS = (0.05, 0.2)  # the same where there are no colours: by how much darker than glass
GREY = 2  # of 255: channels that differ by no more show no colour
SMALLEST = 2e-4  # fraction of the grid below which a piece is dirt
FOCUS_UM, FOCUS_PX, FOCUS_PLACES = 1.0, 96, 120
FAINT = 0.4  # of log brightness: half as bright again as the darkest places
BLURRED = 0.1  # of the energy of structures of 4 pixels, what is left in those of 1 pixel; sharp tissue: 0.2 to 1


@dataclass(frozen=True)
class Tissue:
    """Masks bool [Y X] on a grid of ``downsample`` (y, x) pixels of level 0.

    tissue   where tissue lies, pen and blur included
    pen      ink on the glass; ``blur`` tissue that is out of focus
    mode     bright or dark background
    unread   places that could not be read when looking for blur
    hidden   fraction of the slide that could not be read at all; it counts as tissue, so that its tiles are asked for
    """

    tissue: np.ndarray
    pen: np.ndarray
    blur: np.ndarray
    downsample: tuple[float, float]
    mode: str
    unread: int = 0
    hidden: float = 0.0

    @property
    def usable(self) -> np.ndarray:
        return self.tissue & ~self.pen & ~self.blur

    def fractions(self) -> dict[str, float]:
        """Fractions of the slide with tissue and with pen marks, and of the tissue that is blurred."""
        tissue = max(int(self.tissue.sum()), 1)
        return {
            "tissue": float(self.tissue.mean()),
            "pen": float(self.pen.mean()),
            "blur": float((self.blur & self.tissue).sum() / tissue),
        }

    def tissue_fraction(self, x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
        """[n] fraction of usable tissue in rectangles of level 0; outside of the slide there is none."""
        table = np.zeros((self.tissue.shape[0] + 1, self.tissue.shape[1] + 1))
        table[1:, 1:] = self.usable.cumsum(axis=0).cumsum(axis=1)
        down, across = self.downsample
        top, bottom = np.asarray(y) / down, (np.asarray(y) + height) / down
        left, right = np.asarray(x) / across, (np.asarray(x) + width) / across
        inside = _at(table, bottom, right) - _at(table, top, right) - _at(table, bottom, left) + _at(table, top, left)
        fractions: np.ndarray = (inside / ((bottom - top) * (right - left))).clip(0, 1)
        return fractions


def _at(table: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A summed-area table between its points, linear: rectangles with fractions of cells are exact."""
    y, x = y.clip(0, table.shape[0] - 1), x.clip(0, table.shape[1] - 1)
    y0, x0 = np.minimum(y.astype(int), table.shape[0] - 2), np.minimum(x.astype(int), table.shape[1] - 2)
    fy, fx = y - y0, x - x0
    upper = table[y0, x0] * (1 - fx) + table[y0, x0 + 1] * fx
    lower = table[y0 + 1, x0] * (1 - fx) + table[y0 + 1, x0 + 1] * fx
    values: np.ndarray = upper * (1 - fy) + lower * fy
    return values


def find_tissue(slide: Slide) -> Tissue:
    """Detect tissue, pen marks and blur on a small copy of a slide (at most 1,024 pixels).

    Pen marks are only looked for in colour slides.

    Parameters
    ----------
    slide : Slide

    Returns
    -------
    Tissue

    Raises
    ------
    DamagedFile
        A quarter of the slide or more cannot be read.
    DataError
        A bright slide has channels that are neither grey nor RGB.

    References
    ----------
    Otsu, N. (1979). A threshold selection method from gray-level histograms. IEEE SMC 9(1).
    """
    small, gaps = slide.overview(LONGEST_PX)
    shape = small.shape[1:]
    downsample = (slide.size_px[0] / shape[0], slide.size_px[1] / shape[1])
    none = np.zeros(shape, dtype=bool)
    if slide.mode == DARK:
        tissue = _tidy(_bright_spots(small), shape) | gaps
        return Tissue(tissue, none, none, downsample, slide.mode, hidden=float(gaps.mean()))
    if len(small) not in (1, 3):
        raise DataError(
            f"{slide.path}: bright, with {len(small)} channels that are neither grey nor red, green and blue: "
            "tissue cannot be detected; save it with three channels, or mark the last one as alpha"
        )
    small = slide.eight_bits(small)
    coloured = len(small) == 3 and bool(((small.max(axis=0) - small.min(axis=0)) > GREY).any())
    pen = pen_marks(small) if coloured else none
    tissue = _tidy((_stained(small) if coloured else _darkened(small[0], gaps)) & ~pen, shape) | gaps
    blur, unread = _out_of_focus(slide, tissue & ~pen & ~gaps)
    return Tissue(tissue, pen, blur, downsample, slide.mode, unread, float(gaps.mean()))


def otsu(values: np.ndarray, low: float, high: float) -> float:
    """Threshold between ``low`` and ``high`` with the largest variance between the two classes (Otsu 1979).

    Examples
    --------
    >>> round(otsu(np.array([0.1, 0.1, 0.2, 0.8, 0.9, 0.9]), 0.0, 1.0), 2)
    0.5
    """
    counts, edges = np.histogram(values, bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    total, sums = below[-1], (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = (sums[-1] * below - sums * total) ** 2 / (below * (total - below))
    apart = np.nan_to_num(apart, nan=-1.0, posinf=-1.0)
    best = np.flatnonzero(apart == apart.max())  # between two far humps all thresholds are equal: take the middle
    return float(centres[best].mean())


def _stained(small: np.ndarray) -> np.ndarray:
    values = small.astype(np.float32)
    high, low = values.max(axis=0), values.min(axis=0)
    # Below 40 of 255 saturation is noise; black (folds, the rim of the scan) has none.
    saturation = ndimage.uniform_filter((high - low) / np.maximum(high, 40), 3)
    mask: np.ndarray = saturation > np.clip(otsu(saturation, 0, 1), *SATURATION)
    return mask


def _darkened(grey: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """What is darker than the glass in a picture uint8 [Y X]; ``gaps`` are white by definition, and tell nothing."""
    brightness = ndimage.uniform_filter(grey.astype(np.float32), 3)
    glass = max(float(np.percentile(brightness[~gaps], 99)), 1.0)
    darkness = (1 - brightness / glass).clip(0, 1)
    mask: np.ndarray = darkness > np.clip(otsu(darkness[~gaps], 0, 1), *DARKNESS)
    return mask


def _bright_spots(small: np.ndarray) -> np.ndarray:
    """Signal over a dark background: Otsu on log brightness, where that is clearly above the darkest places.

    Tissue glows faintly by itself, stained cells a hundred times more: without the logarithm only those would be left.
    """
    brightness = ndimage.gaussian_filter(small.astype(np.float32).max(axis=0), 1.5)
    values = np.log1p(brightness)
    darkest, top = float(np.percentile(values, 2)), float(np.percentile(values, 99.9))
    if top - darkest < FAINT:
        return np.zeros(values.shape, dtype=bool)
    mask: np.ndarray = values > max(otsu(values, float(values.min()), top), darkest + FAINT)
    return mask


def _tidy(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Small gaps are closed, specks removed, small holes filled."""
    # Working on a frame keeps the closing from eating tissue at the rim.
    closed = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), _disc(3))[4:-4, 4:-4]
    smallest = max(4, round(SMALLEST * shape[0] * shape[1]))
    large = _larger(closed, smallest)
    return ~_larger(~large, smallest)


def _larger(mask: np.ndarray, smallest: int) -> np.ndarray:
    numbers, count = ndimage.label(mask)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    large: np.ndarray = (sizes >= smallest)[numbers]
    return large


def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(y**2 + x**2 <= radius**2)


def pen_marks(small: np.ndarray) -> np.ndarray:
    """Ink [Y X] in a bright picture [3 Y X] uint8: green, saturated blue and red, black.

    Eosin, haematoxylin and the brown of DAB are not among these colours at this resolution.
    """
    red, green, blue = small.astype(np.float32) / 255
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    saturation = chroma / np.maximum(high, 0.15)
    hue = _hue(red, green, blue, high, chroma)
    ink = (hue > 75) & (hue < 175) & (saturation > 0.2) & (chroma > 0.12)
    ink |= (hue >= 175) & (hue < 238) & (saturation > 0.5)
    ink |= ((hue > 348) | (hue < 14)) & (saturation > 0.62) & (high > 0.5)
    ink |= (high < 0.28) & (chroma < 0.12)
    size = small.shape[1] * small.shape[2]
    strokes = _larger(ndimage.binary_opening(ink, _disc(1)), max(12, round(SMALLEST * size)))
    if not strokes.any():
        return strokes
    marks: np.ndarray = ndimage.binary_dilation(strokes, _disc(3))  # strokes fade out
    return marks


def _hue(red: np.ndarray, green: np.ndarray, blue: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees 0 to 360; 0 for grey."""
    safe = np.maximum(chroma, 1e-6)
    sector = np.where(
        high == red,
        ((green - blue) / safe) % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.where(chroma < 1e-6, 0.0, 60 * sector)


def sharpness(picture: np.ndarray) -> float:
    """Energy of the finest structures by that of coarser ones, of a grey picture [Y X]; NaN where it is empty."""
    fine = ndimage.gaussian_filter(picture, 1.0)
    coarse = ndimage.gaussian_filter(picture, 4.0)
    middle = float((fine - coarse).var())
    return float((picture - fine).var()) / middle if middle > 4.0 else float("nan")


def _out_of_focus(slide: Slide, tissue: np.ndarray) -> tuple[np.ndarray, int]:
    """Tissue that is out of focus: places spread over it are looked at closely, the parts between follow the nearest.

    Energies compare a place with itself, so stain and contrast do not count. Also the number of places not readable.
    """
    blurred = np.zeros(tissue.shape, dtype=bool)
    if not tissue.any():
        return blurred, 0
    side = max(8, int(np.ceil(np.sqrt(tissue.sum() / FOCUS_PLACES))))
    factor = max(1.0, FOCUS_UM / max(slide.spacing_um)) if slide.spacing_um else 1.0
    down, across = slide.size_px[0] / tissue.shape[0], slide.size_px[1] / tissue.shape[1]
    half, unread = FOCUS_PX * factor / 2, 0
    for top in range(0, tissue.shape[0], side):
        for left in range(0, tissue.shape[1], side):
            cell = (slice(top, top + side), slice(left, left + side))
            if tissue[cell].mean() < 0.5:
                continue
            y, x = (np.argwhere(tissue[cell]).mean(axis=0) + (top + 0.5, left + 0.5)) * (down, across)
            try:
                patch = slide.reduced(x - half, y - half, factor, (FOCUS_PX, FOCUS_PX))
            except DamagedFile:
                unread += 1
                continue
            blurred[cell] = sharpness(patch.astype(np.float32).mean(axis=0)) < BLURRED
    return blurred & tissue, unread
