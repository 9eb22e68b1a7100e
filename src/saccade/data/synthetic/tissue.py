"""Drawing H&E-like tissue: amounts of haematoxylin and eosin from simple anatomy, then Beer-Lambert colour.

Eight patterns differ in structure: how nuclei lie, what shape they have, what lies between. The mean amount of
each stain in a tile is drawn independently of the pattern: mean colour carries no information, a histogram little.
Lengths are in micrometres; one pixel is one micrometre times the tile's own scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

# Optical density of red, green, blue for one unit of stain (after Ruifrok and Johnston 2001; eosin a little warmer).
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.12, 0.95, 0.30])
BY_RANK = 0.65  # share of a pixel's rank in its stain, the rest by its value; docs/log.md says why
MEAN_HAEMATOXYLIN, MEAN_EOSIN = (0.24, 0.34), (0.36, 0.46)  # of a tile, whatever its pattern
REACH = 9  # pixels a stamped nucleus may extend from its centre, at scale 1


@dataclass
class Canvas:
    """Amounts of stain of one tile while it is drawn; ``y`` and ``x`` are the pixel positions in micrometres."""

    size_px: int
    scale: float
    rng: np.random.Generator
    y: np.ndarray = field(init=False)
    x: np.ndarray = field(init=False)
    nuclei: np.ndarray = field(init=False)
    eosin: np.ndarray = field(init=False)
    mask: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        ticks = (np.arange(self.size_px) + 0.5) / self.scale
        self.y, self.x = np.meshgrid(ticks, ticks, indexing="ij")
        shape = (self.size_px, self.size_px)
        self.nuclei, self.eosin = np.zeros(shape), np.zeros(shape)
        self.mask = np.zeros(shape, dtype=bool)

    @property
    def extent(self) -> float:
        return self.size_px / self.scale

    def noise(self, grain: float) -> np.ndarray:
        """Smooth noise, about -1 to 1, with structures of ``grain`` micrometres."""
        coarse = max(4, int(np.ceil(self.extent / grain)) + 3)
        values = self.rng.standard_normal((coarse, coarse))
        enlarged = zoom(values, (self.size_px * 1.0) / (coarse - 3), order=1)
        return 0.6 * enlarged[: self.size_px, : self.size_px]

    def lattice(self, spacing: float, jitter: float) -> np.ndarray:
        """Points [n 2] (y, x): a turned hexagonal lattice, each point shifted by ``jitter`` of the spacing."""
        half = self.extent / 2
        reach = half * 1.5 + 2 * spacing
        count = int(np.ceil(reach / spacing)) + 1
        i, j = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1), indexing="ij")
        points = np.stack([i * 0.866, j + 0.5 * (i % 2)], axis=-1).reshape(-1, 2) * spacing
        points += self.rng.uniform(0, spacing, 2) + self.rng.normal(0, jitter * spacing, points.shape)
        angle = self.rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = points @ turn + half
        near = np.all((points > -spacing) & (points < self.extent + spacing), axis=1)
        return points[near]

    def stamp(
        self, points: np.ndarray, long: np.ndarray, short: np.ndarray, angle: np.ndarray, depth: np.ndarray
    ) -> None:
        """Draw nuclei: ellipses with half axes ``long`` and ``short`` (micrometres), all [n] at once.

        Each has a darker rim, as the nuclear membrane does, and clumps of chromatin from a noise field.
        """
        if not len(points):
            return
        reach = int(np.ceil(max(REACH, 1.3 * long.max()) * self.scale))
        offsets = np.arange(-reach, reach + 1)
        at = points * self.scale
        base = np.floor(at).astype(int)
        rows, columns = base[:, 0, None, None] + offsets[:, None], base[:, 1, None, None] + offsets[None, :]
        dy, dx = rows + 0.5 - at[:, 0, None, None], columns + 0.5 - at[:, 1, None, None]
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        u, v = (cos * dx + sin * dy) / self.scale, (cos * dy - sin * dx) / self.scale
        distance = np.sqrt((u / long[:, None, None]) ** 2 + (v / short[:, None, None]) ** 2)
        edge = np.clip((1 - distance) * short[:, None, None] * self.scale + 0.5, 0, 1)
        value = edge * depth[:, None, None] * (0.78 + 0.22 * np.clip(distance, 0, 1) ** 3)
        keep = (edge > 0) & (rows >= 0) & (rows < self.size_px) & (columns >= 0) & (columns < self.size_px)
        rows, columns = np.broadcast_arrays(rows, columns)
        np.maximum.at(self.nuclei, (rows[keep], columns[keep]), value[keep])
        inside = keep & (edge > 0.5)
        self.mask[rows[inside], columns[inside]] = True

    def random_nuclei(self, points: np.ndarray, radius: float, spread: float, roundness: float, depth: float) -> None:
        """Nuclei of random direction; ``spread`` is the relative variation of size, ``roundness`` short by long."""
        n, rng = len(points), self.rng
        long = radius * np.exp(rng.normal(0, spread, n))
        short = long * np.clip(rng.normal(roundness, 0.1, n), 0.25, 1)
        self.stamp(points, long, short, rng.uniform(0, np.pi, n), depth * rng.uniform(0.8, 1.2, n))


def _nearest(canvas: Canvas, seeds: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.stack([canvas.y.ravel(), canvas.x.ravel()], axis=1)
    distance, which = cKDTree(seeds).query(pixels, k=count)
    shape = (canvas.size_px, canvas.size_px) + ((count,) if count > 1 else ())
    return distance.reshape(shape), which.reshape(shape)


def _fibres(canvas: Canvas, angle: float, period: float, wave: float) -> np.ndarray:
    """Wavy bundles along ``angle``, 0..1."""
    along = np.cos(angle) * canvas.x + np.sin(angle) * canvas.y
    across = np.cos(angle) * canvas.y - np.sin(angle) * canvas.x
    bend = wave * np.sin(2 * np.pi * along / (9 * period) + canvas.rng.uniform(0, 6.28)) + 1.5 * canvas.noise(14)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (across + bend) / period)


def glands(canvas: Canvas) -> None:
    """Rings of oval nuclei around a white lumen, in loose stroma."""
    rng = canvas.rng
    centres = canvas.lattice(rng.uniform(25, 29), 0.08)
    radii = rng.uniform(8.0, 10.5, len(centres))
    distance, which = _nearest(canvas, centres, 1)
    inner = distance - radii[which]
    canvas.eosin = 0.35 + 0.2 * _fibres(canvas, rng.uniform(0, np.pi), 5, 3)
    canvas.eosin = np.where(np.abs(inner) < 4, 0.75, canvas.eosin)
    canvas.eosin *= np.clip((inner + 4.5) / 1.5, 0.03, 1)
    for centre, radius in zip(centres, radii):
        n = int(2 * np.pi * radius / 4.3)
        phi = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 6.28)
        points = centre + (radius + rng.normal(0.8, 0.4, (n, 1))) * np.stack([np.sin(phi), np.cos(phi)], axis=1)
        canvas.stamp(points, rng.uniform(2.4, 3.2, n), rng.uniform(1.5, 2.0, n), phi, rng.uniform(0.9, 1.2, n))


def solid(canvas: Canvas) -> None:
    """Sheets of large, uneven nuclei with little between."""
    canvas.eosin = 0.6 + 0.12 * canvas.noise(6)
    points = canvas.lattice(canvas.rng.uniform(8.5, 10), 0.2)
    canvas.random_nuclei(points, 3.9, 0.22, 0.75, 0.95)


def stroma(canvas: Canvas) -> None:
    """Wavy fibres with thin nuclei along them."""
    rng = canvas.rng
    angle = rng.uniform(0, np.pi)
    canvas.eosin = 0.25 + 0.7 * _fibres(canvas, angle, rng.uniform(4.5, 6.5), 4) ** 1.5
    points = canvas.lattice(rng.uniform(9.5, 12), 0.3)
    n = len(points)
    canvas.stamp(
        points,
        rng.uniform(4.5, 7, n),
        rng.uniform(1.0, 1.5, n),
        angle + rng.normal(0, 0.2, n),
        rng.uniform(0.9, 1.2, n),
    )


def lymphocytes(canvas: Canvas) -> None:
    """Small round dark nuclei, packed."""
    canvas.eosin = 0.4 + 0.2 * canvas.noise(8)
    points = canvas.lattice(canvas.rng.uniform(5.0, 6.0), 0.16)
    present = points[canvas.rng.random(len(points)) < 0.85]
    canvas.random_nuclei(present, 2.05, 0.08, 0.95, 1.15)


def fat(canvas: Canvas) -> None:
    """Large empty cells with thin walls, a flat nucleus here and there."""
    rng = canvas.rng
    seeds = canvas.lattice(rng.uniform(15, 19), 0.16)
    distance, which = _nearest(canvas, seeds, 2)
    gap = distance[..., 1] - distance[..., 0]
    canvas.eosin = 0.02 + 1.0 * np.clip(1.4 - gap / 1.6, 0, 1)
    a, b = seeds[which[..., 0]], seeds[which[..., 1]]
    walls = np.argwhere(gap < 0.8 / canvas.scale)
    chosen = walls[rng.random(len(walls)) < 0.05]
    side = (b - a)[chosen[:, 0], chosen[:, 1]]
    angle = np.arctan2(side[:, 0], side[:, 1]) + np.pi / 2
    n = len(chosen)
    points = (chosen + 0.5) / canvas.scale
    canvas.stamp(points, rng.uniform(2.5, 4, n), rng.uniform(1.0, 1.4, n), angle, rng.uniform(0.9, 1.2, n))


def vacuoles(canvas: Canvas) -> None:
    """A sheet pierced by small round holes, nuclei between them (cribriform growth, signet cells)."""
    rng = canvas.rng
    spacing = rng.uniform(9.5, 11.5)
    holes = canvas.lattice(spacing, 0.12)
    distance, which = _nearest(canvas, holes, 3)
    radii = rng.uniform(2.6, 3.8, len(holes))
    canvas.eosin = (0.65 + 0.1 * canvas.noise(6)) * np.clip((distance[..., 0] - radii[which[..., 0]]) + 0.5, 0.03, 1)
    centre = holes[which]
    corners = np.unique(np.sort(which.reshape(-1, 3), axis=1), axis=0)
    points = holes[corners].mean(axis=1)
    near = np.linalg.norm(points - holes[corners[:, 0]], axis=1) < spacing
    assert centre.shape[-1] == 2
    canvas.random_nuclei(points[near], 1.9, 0.12, 0.8, 1.05)


def cords(canvas: Canvas) -> None:
    """Parallel cords, nuclei standing in rows across them, white clefts between."""
    rng = canvas.rng
    angle, period = rng.uniform(0, np.pi), rng.uniform(13, 16)
    bend = 2.0 * canvas.noise(22)
    across = np.cos(angle) * canvas.y - np.sin(angle) * canvas.x + bend
    phase = np.abs(((across / period) % 1) - 0.5) * period
    canvas.eosin = 0.62 * np.clip(period / 2 - phase - 0.6, 0.03, 1)
    length = canvas.extent * 1.6
    steps = np.arange(-length / 2, length / 2, 3.9)
    rows = np.arange(-np.ceil(length / period / 2) - 1, np.ceil(length / period / 2) + 2) * period
    along, base = np.meshgrid(steps, rows, indexing="ij")
    for side in (-2.7, 2.7):
        v = (base + period / 2 + side).ravel() + rng.normal(0, 0.35, base.size)
        u = along.ravel() + rng.normal(0, 0.5, base.size)
        half = canvas.extent / 2
        offset = np.cos(angle) * half - np.sin(angle) * half
        v = v + np.round(offset / period) * period
        y, x = (
            np.sin(angle) * u + np.cos(angle) * (v - offset),
            np.cos(angle) * u - np.sin(angle) * (v - offset),
        )
        points = np.stack([y + half, x + half], axis=1)
        index = np.clip((points * canvas.scale).astype(int), 0, canvas.size_px - 1)
        shift = bend[index[:, 0], index[:, 1]]
        points = points - shift[:, None] * np.array([np.cos(angle), -np.sin(angle)])
        near = np.all((points > -4) & (points < canvas.extent + 4), axis=1)
        n = int(near.sum())
        canvas.stamp(
            points[near],
            rng.uniform(2.3, 3.0, n),
            rng.uniform(1.3, 1.7, n),
            np.full(n, angle + np.pi / 2),
            rng.uniform(0.9, 1.2, n),
        )


def whorls(canvas: Canvas) -> None:
    """Concentric layers, as in keratin pearls, with flat nuclei along the layers."""
    rng = canvas.rng
    centres = canvas.lattice(rng.uniform(22, 28), 0.12)
    distance, _ = _nearest(canvas, centres, 1)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (distance + canvas.noise(12)) / rng.uniform(4.2, 5.2))
    canvas.eosin = 0.35 + 0.55 * rings
    points = canvas.lattice(rng.uniform(8, 9.5), 0.25)
    to = points - centres[cKDTree(centres).query(points)[1]]
    n = len(points)
    angle = np.arctan2(to[:, 0], to[:, 1]) + np.pi / 2
    canvas.stamp(
        points,
        rng.uniform(3.2, 4.6, n),
        rng.uniform(1.1, 1.6, n),
        angle + rng.normal(0, 0.15, n),
        rng.uniform(0.9, 1.2, n),
    )


PATTERNS: dict[str, Callable[[Canvas], None]] = {
    "cords": cords,
    "fat": fat,
    "glands": glands,
    "lymphocytes": lymphocytes,
    "solid": solid,
    "stroma": stroma,
    "vacuoles": vacuoles,
    "whorls": whorls,
}


@dataclass(frozen=True)
class Stain:
    """How one patient's slide was stained and scanned."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    amounts: tuple[float, float]
    light: np.ndarray


def draw_stain(rng: np.random.Generator) -> Stain:
    """A laboratory's stain: the two colours turned a little, their amounts, and the colour of the lamp."""

    def turned(vector: np.ndarray) -> np.ndarray:
        changed = np.clip(vector + rng.normal(0, 0.035, 3), 0.02, None)
        return changed / np.linalg.norm(changed)

    amounts = (float(rng.uniform(0.88, 1.14)), float(rng.uniform(0.85, 1.18)))
    return Stain(turned(HAEMATOXYLIN), turned(EOSIN), amounts, rng.uniform(0.96, 1.0, 3))


def render(pattern: str, size_px: int, rng: np.random.Generator, stain: Stain) -> tuple[np.ndarray, np.ndarray]:
    """One tile: pixels uint8 [3 Y X] and the mask of its nuclei uint8 [Y X] (255 inside)."""
    haematoxylin, eosin, mask = draw_amounts(pattern, size_px, rng)
    density = stain.haematoxylin[:, None, None] * haematoxylin * stain.amounts[0]
    density = density + stain.eosin[:, None, None] * eosin * stain.amounts[1]
    light = 250 * stain.light * rng.uniform(0.95, 1.02)
    pixels = light[:, None, None] * np.exp(-density) + rng.normal(0, rng.uniform(1, 4), density.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def draw_amounts(pattern: str, size_px: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one tile holds, before it has a colour: amounts of both stains [Y X] and the mask of its nuclei."""
    canvas = Canvas(size_px, float(rng.uniform(0.85, 1.2)), rng)
    PATTERNS[pattern](canvas)
    chromatin = 1 + 0.25 * canvas.noise(2.2)
    cytoplasm = np.clip(canvas.eosin + 0.05 * canvas.noise(3), 0, None)
    darkness = 0.45 * cytoplasm * (1 - 0.5 * np.clip(canvas.nuclei, 0, 1)) + canvas.nuclei * chromatin
    sigma = rng.uniform(0.3, 0.8)
    darkness = gaussian_filter(darkness + 0.01 * canvas.noise(5), sigma)
    haematoxylin, eosin = _stained(darkness, rng)
    return haematoxylin, eosin, canvas.mask


def _stained(darkness: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Amounts of haematoxylin and eosin from each pixel's darkness: by its rank in the tile and by its value.

    The lightest pixels are background, the darkest nuclei, the rest cytoplasm and fibres. By rank alone every
    pattern would have the same histogram of colours; by value alone the histogram would give the pattern away.
    """
    rank = np.empty(darkness.size)
    rank[np.argsort(darkness, axis=None)] = np.arange(darkness.size) / darkness.size
    value = np.interp(darkness.ravel(), [0.0, 0.1, 0.25, 0.4, 0.7, 1.3], [0.0, 0.15, 0.45, 0.7, 0.85, 1.0])
    rank = BY_RANK * rank + (1 - BY_RANK) * value
    light, dark = rng.uniform(0.13, 0.22), rng.uniform(0.2, 0.28)
    at = [0, light, light + 0.1, 1 - dark - 0.04, 1 - dark + 0.05, 1]
    haematoxylin = np.interp(rank, at, [0.0, 0.02, 0.05, 0.14, 0.7, rng.uniform(1.2, 1.5)])
    eosin = np.interp(rank, at, [0.01, 0.06, 0.32, rng.uniform(0.62, 0.78), 0.55, 0.5])
    haematoxylin *= rng.uniform(*MEAN_HAEMATOXYLIN) / haematoxylin.mean()
    eosin *= rng.uniform(*MEAN_EOSIN) / eosin.mean()
    return haematoxylin.reshape(darkness.shape), eosin.reshape(darkness.shape)
