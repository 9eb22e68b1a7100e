"""``synthetic:slide``: slides that saccade draws, real pyramidal TIFF of any size, the same for everyone.

A slide is a piece of tissue on glass, made of square regions of the patterns of ``synthetic:tissue``. A share of it is
nests of two by two regions of lymphocytes and of solid growth. With ``label=arrangement`` its class says how the two
lie: ``mixed`` has nests that are chequered, ``apart`` has as many of both, each nest of one kind (tumours that are
infiltrated by lymphocytes, and such that keep them out). Amounts say nothing, to the last region. With
``label=composition`` the class says which of the two there is more of (``inflamed``, ``solid``); places say nothing.
Regions are as large as the grain of the textures, so that a tile on the lattice never shows two patterns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.base.random import numpy_generator
from saccade.data.slides.pyramid_writer import TILE_PX, write_pyramid
from saccade.data.synthetic.tissue import PATTERNS, draw_amounts, draw_stain
from saccade.errors import UsageError, unknown

UM = 1.0
VARIANTS = 8  # textures a pattern, each shown in eight positions
MOST = 2.5  # amount of a stain that is 255
FIRST, SECOND = "lymphocytes", "solid"
FILLERS = ("stroma", "glands", "fat")
CLASSES = sorted(PATTERNS)
GLASS = 255
LABELS = {"arrangement": ("mixed", "apart"), "composition": ("inflamed", "solid")}
MORE = 0.7  # of the nests, in slides whose class is the composition
TEST = 0.3
MARK = "drawn.json"


@dataclass(frozen=True)
class Drawing:
    """What is asked for: ``n`` slides of ``size`` pixels, two a patient; see the head of this file.

    share   of the tissue that is nests, which alone know the label; at least two nests are drawn
    """

    n: int = 1
    size: int = 4096
    seed: int = 0
    region: int = TILE_PX
    label: str = "arrangement"
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise unknown("label of synthetic:slide", self.label, LABELS)
        if self.n < 1 or self.region % 64 or self.region < 64 or self.size < 6 * self.region:
            raise UsageError(
                "invalid settings of synthetic:slide",
                got=f"n={self.n}, size={self.size}, region={self.region}",
                expected="n >= 1, region a multiple of 64, size at least six regions",
            )
        if not 0 < self.share <= 1:
            raise UsageError("share is a fraction of the tissue", got=self.share, expected="above 0, at most 1")

    @property
    def mib(self) -> float:
        """About how much disk they take."""
        return self.n * self.size**2 * 0.55 / 2**20

    def name(self, number: int) -> str:
        return f"slide-{number:04d}"

    def patient(self, number: int) -> int:
        return number // 2

    def kind(self, number: int) -> str:
        """The label: one patient's two slides have both, so that a patient says nothing."""
        return LABELS[self.label][(number + self.patient(number)) % 2]

    @cached_property
    def test_patients(self) -> set[int]:
        count = self.patient(self.n - 1) + 1
        order = numpy_generator(self.seed, "slide-split").permutation(count)
        return set(order[: round(TEST * count)].tolist())


def read_drawing(query: dict[str, str]) -> tuple[Drawing, Path]:
    """``synthetic:slide?n=60&size=4096&folder=slides``: the drawing and its folder. Raises UsageError."""
    defaults = {field.name: field.default for field in dataclasses.fields(Drawing)}
    values: dict[str, int | float | str] = {}
    for key, text in query.items():
        if key == "folder":
            continue
        if key not in defaults:
            raise unknown("setting of synthetic:slide", key, [*defaults, "folder"])
        try:
            values[key] = text if key == "label" else float(text) if key == "share" else int(text)
        except ValueError:
            kind = "a number" if key == "share" else "a whole number"
            raise UsageError(f"synthetic:slide: {key} is {kind}", got=repr(text)) from None
    drawing = Drawing(**values)  # type: ignore[arg-type]
    if not query.get("folder"):
        raise UsageError(
            "synthetic:slide writes files and needs a folder",
            got=f"{drawing.n:,} slides of {drawing.size:,} pixels, about {max(1, round(drawing.mib)):,} MiB",
            hint="add the folder: synthetic:slide?n=60&size=4096&folder=slides",
        )
    return drawing, Path(query["folder"]).expanduser()


def draw_slides(drawing: Drawing, folder: Path, report: Callable[[int, int], None] | None = None) -> Path:
    """Write the slides that are not there yet, and ``manifest.csv`` with their labels, patients and splits.

    Beside each slide lies NAME-regions.png: one pixel a region, 255 is glass, others are numbers of CLASSES.
    Raises UsageError where the folder holds something else.
    """
    asked = dataclasses.asdict(drawing)
    mark = folder / MARK
    if mark.exists() and run_folder.read_json(mark)["drawing"] != asked:
        raise UsageError(
            f"{folder} holds other drawn slides", got=run_folder.read_json(mark)["drawing"], expected=asked
        )
    if not mark.exists() and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="name a new folder for drawn slides")
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(mark, {"drawing": asked, "classes": CLASSES, "um": UM})
    ink: Ink | None = None
    for number in range(drawing.n):
        path = folder / f"{drawing.name(number)}.tif"
        if not path.exists():
            ink = ink or Ink(drawing.seed)
            regions = lay_out(drawing, number)
            Image.fromarray(regions).save(folder / f"{drawing.name(number)}-regions.png")
            size = (drawing.size, drawing.size)
            write_pyramid(path, size, _strips(drawing, number, regions, ink), um=UM)
        if report is not None:
            report(number + 1, drawing.n)
    write_text(folder / "manifest.csv", _manifest(drawing))
    return folder


def _manifest(drawing: Drawing) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "label", "patient", "split"])
    for number in range(drawing.n):
        patient = drawing.patient(number)
        split = "test" if patient in drawing.test_patients else "train"
        writer.writerow([f"{drawing.name(number)}.tif", drawing.kind(number), f"patient-{patient:03d}", split])
    return file.getvalue()


# --- where regions lie ----------------------------------------------------------------------------


def lay_out(drawing: Drawing, number: int) -> np.ndarray:
    """Patterns of the regions of one slide, uint8 [Y X]: numbers of CLASSES, or GLASS."""
    rng = numpy_generator(drawing.seed, "slide-layout", number)
    side = drawing.size // drawing.region
    tissue = _outline(side, rng)
    regions = np.where(tissue, _fillers(side, rng), GLASS).astype(np.uint8)
    nests = _nests(tissue, drawing.share, rng)
    kind = drawing.kind(number)
    more = len(nests) // 2 if drawing.label == "arrangement" else round(MORE * len(nests))
    first, second = CLASSES.index(FIRST), CLASSES.index(SECOND)
    for rank, (y, x) in enumerate(nests):
        pattern, other = (first, second) if rank < more else (second, first)
        if kind == "solid":
            pattern, other = other, pattern
        regions[y : y + 2, x : x + 2] = pattern
        if kind == "mixed":
            regions[y, x + 1] = regions[y + 1, x] = other
    return regions


def _nests(tissue: np.ndarray, share: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Corners of an even number of nests, in an order that says nothing, on a lattice of their own for every slide."""
    side, (top, left) = len(tissue), rng.integers(2, size=2)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a small piece may hold two nests on one lattice alone
        rows, columns = range((top + down) % 2, side - 1, 2), range((left + right) % 2, side - 1, 2)
        inside = [(y, x) for y in rows for x in columns if tissue[y : y + 2, x : x + 2].all()]
        if len(inside) >= 2:
            break
    count = min(max(2, int(share * tissue.sum() / 4) // 2 * 2), len(inside) // 2 * 2)
    if count < 2:
        raise UsageError(
            "the slide is too small for two tumour nests", got=f"{side} x {side} regions", hint="draw larger slides"
        )
    return [inside[k] for k in rng.permutation(len(inside))[:count]]


def _outline(side: int, rng: np.random.Generator) -> np.ndarray:
    """A rounded piece with an uneven edge, glass all around it."""
    y, x = np.mgrid[:side, :side] + 0.5
    wobble = gaussian_filter(rng.standard_normal((side, side)), side / 10) * side / 10
    radius = np.hypot((y - side / 2) / rng.uniform(0.42, 0.48), (x - side / 2) / rng.uniform(0.42, 0.48))
    inside = radius + wobble < side
    inside[[0, -1]], inside[:, [0, -1]] = False, False
    return np.asarray(inside)


def _fillers(side: int, rng: np.random.Generator) -> np.ndarray:
    """Patches of three other patterns, in amounts of the slide's own."""
    count = max(6, side * side // 40)
    seeds = rng.uniform(0, side, (count, 2))
    kinds = rng.choice(len(FILLERS), count, p=rng.dirichlet([3.0] * len(FILLERS)))
    numbers = np.array([CLASSES.index(name) for name in FILLERS], np.uint8)[kinds]
    patterns = np.zeros((side, side), np.uint8)
    for row in range(side):  # a row at a time: all distances at once would be gigabytes
        centres = np.stack([np.full(side, row + 0.5), np.arange(side) + 0.5], axis=1)
        patterns[row] = numbers[((centres[:, None] - seeds) ** 2).sum(axis=-1).argmin(axis=1)]
    return patterns


# --- pixels ---------------------------------------------------------------------------------------


class Ink:
    """Textures of every pattern as amounts of both stains (8 bits each), and a field of noise, for all slides."""

    def __init__(self, seed: int):
        self.textures: dict[int, list[np.ndarray]] = {}
        for name in (FIRST, SECOND, *FILLERS):
            pattern = CLASSES.index(name)
            self.textures[pattern] = []
            for variant in range(VARIANTS):
                haematoxylin, eosin, _ = draw_amounts(name, TILE_PX, numpy_generator(seed, "slide-ink", name, variant))
                both = [np.clip(amount * 255 / MOST, 0, 255).astype(np.uint16) for amount in (haematoxylin, eosin)]
                self.textures[pattern].append(both[0] * 256 + both[1])
        rng = numpy_generator(seed, "slide-noise")
        self.noise = rng.normal(0, 1.5, (2 * TILE_PX, 2 * TILE_PX, 1)).astype(np.int16)

    def piece(self, pattern: int, side: int, rng: np.random.Generator) -> np.ndarray:
        """Amounts of a square of one pattern, at most the size of a texture."""
        texture = np.rot90(self.textures[pattern][int(rng.integers(VARIANTS))], int(rng.integers(4)))
        texture = texture[:, ::-1] if rng.integers(2) else texture
        return texture[:side, :side]


def _strips(drawing: Drawing, number: int, regions: np.ndarray, ink: Ink) -> Iterator[np.ndarray]:
    """The slide from top to bottom, 256 rows at a time; each region depends on (seed, slide, its place) alone."""
    palette = _palette(drawing, number)
    glass = np.array([244, 243, 245], np.int16)
    step = min(drawing.region, TILE_PX)
    for top in range(0, drawing.size, TILE_PX):
        height = min(TILE_PX, drawing.size - top)
        strip = np.empty((height, drawing.size, 3), np.uint8)
        for y in range(0, height, step):
            for x in range(0, drawing.size, step):
                row, column = (top + y) // drawing.region, x // drawing.region
                rng = numpy_generator(drawing.seed, "slide-pixels", number, (top + y) // step, x // step)
                part = strip[y : y + step, x : x + step]
                inside = row < len(regions) and column < len(regions) and regions[row, column] != GLASS
                at_y, at_x = rng.integers(0, TILE_PX, 2)
                noise = ink.noise[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]]
                if inside:
                    amounts = ink.piece(int(regions[row, column]), step, rng)[: part.shape[0], : part.shape[1]]
                    part[:] = (palette[amounts] + noise).clip(0, 255)
                else:
                    part[:] = glass + noise // 2
        yield strip


def _palette(drawing: Drawing, number: int) -> np.ndarray:
    """[65536 3] int16: the colour of every pair of amounts, with the stain of the slide's patient."""
    stain = draw_stain(numpy_generator(drawing.seed, "slide-stain", drawing.patient(number)))
    amount = np.arange(256) * MOST / 255
    haematoxylin = amount[:, None, None] * stain.haematoxylin * stain.amounts[0]
    eosin = amount[None, :, None] * stain.eosin * stain.amounts[1]
    colours: np.ndarray = np.rint(250 * stain.light * np.exp(-(haematoxylin + eosin))).astype(np.int16)
    return colours.reshape(-1, 3)
