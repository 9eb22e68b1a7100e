"""Drawing volumes: a body of textured tissue with one lesion, whose shape or texture is the class.

Six classes. What could betray them without looking at shape is drawn independently of the class: the number of
voxels of the lesion, its contrast (brighter or darker), its place and angle, and the mean of the whole volume.
Lengths are in millimetres; voxels are drawn as cubes of 1 mm, and thicker slices are means of those, as in a scanner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

LESION_SHARE = (0.15, 0.20)  # radius of a ball of the lesion's volume, of the volume's side
CONTRAST = (0.25, 0.45)  # of the tissue's brightness, up or down
MEAN = (0.30, 0.45)  # of a whole volume, whatever is in it
AIR, TISSUE, LESION = 0, 1, 2  # numbers in the mask
Form = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Scanner:
    """What all volumes of a patient share: grain of the tissue in mm, noise, blur, bias field, and the scale."""

    grain: float
    noise: float
    blur: float
    bias: float
    scale: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    return Scanner(
        grain=float(rng.uniform(2.5, 5)),
        noise=float(rng.uniform(0.02, 0.05)),
        blur=float(rng.uniform(0.3, 0.7)),
        bias=float(rng.uniform(0.0, 0.25)),
        scale=float(10 ** rng.uniform(2.5, 4)),
    )


# Each form gets places u [3 Z Y X] in radii of a ball of the lesion's volume, about its middle, and says how far
# inside they are; the largest values become the lesion.


def solid(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    axes = rng.uniform(0.85, 1.2, 3)
    return -np.linalg.norm(u / (axes / np.cbrt(axes.prod()))[:, None, None, None], axis=0)


def hollow(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return -np.abs(np.linalg.norm(u, axis=0) - rng.uniform(1.25, 1.4))


def lobed(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Five balls apart from each other, on a ring that is bent."""
    angles = np.arange(5) * 2 * np.pi / 5 + rng.uniform(-0.2, 0.2, 5)
    middles = np.stack([rng.uniform(-0.5, 0.5, 5), 1.35 * np.sin(angles), 1.35 * np.cos(angles)], axis=1)
    return np.max([-np.linalg.norm(u - m[:, None, None, None], axis=0) for m in middles], axis=0)


def branched(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A trunk that parts into three."""
    ends = [np.array([-2.0, 0.0, 0.0])]
    for turn in np.arange(3) * 2 * np.pi / 3 + rng.uniform(0, 2 * np.pi):
        ends.append(np.array([1.6, 1.3 * np.sin(turn), 1.3 * np.cos(turn)]))
    return np.max([-_from_segment(u, end) for end in ends], axis=0)


def _from_segment(u: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance from the line between the origin and ``end``."""
    share = np.clip(np.tensordot(end, u, axes=1) / (end @ end), 0, 1)
    return np.linalg.norm(u - end[:, None, None, None] * share, axis=0)


def flat(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wide = rng.uniform(1.55, 1.75)
    return -np.maximum(np.hypot(u[1], u[2]) / wide, np.abs(u[0]) * wide**2 / 0.67)


FORMS: dict[str, Form] = {
    "branched": branched,
    "flat": flat,
    "hollow": hollow,
    "lobed": lobed,
    "mottled": solid,  # the shape of a solid one, with a coarse grain inside
    "solid": solid,
}


def render(
    label: str, size_mm: int, slice_mm: int, rng: np.random.Generator, scanner: Scanner
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1 T Y X] uint16 and mask [T Y X] uint8 (0 air, 1 tissue, 2 lesion)."""
    middle = (np.indices((size_mm,) * 3, dtype=np.float32) + 0.5) - size_mm / 2
    body = _body(middle, size_mm, rng)
    radius = float(rng.uniform(*LESION_SHARE)) * size_mm
    centre = rng.uniform(-0.12, 0.12, 3) * size_mm
    turn = Rotation.random(rng=rng).as_matrix().astype(np.float32)
    u = np.tensordot(turn, middle - centre[:, None, None, None].astype(np.float32), axes=1) / radius
    lesion = _largest(FORMS[label](u, rng), round(4 / 3 * np.pi * radius**3)) & (body > 0)
    contrast = float(rng.uniform(*CONTRAST)) * (1 if rng.random() < 0.5 else -1)
    inside = np.full(lesion.shape, contrast, np.float32)
    if label == "mottled":
        inside += 0.3 * _grain(size_mm, 0.35 * radius, rng)
    tissue = 1 + 0.12 * _grain(size_mm, scanner.grain, rng) + 0.06 * _grain(size_mm, 3 * scanner.grain, rng)
    soft = gaussian_filter(lesion.astype(np.float32), 0.6)
    image = gaussian_filter((body > 0).astype(np.float32), 0.8) * (tissue + soft * inside)
    mask = np.where(lesion, LESION, np.where(body > 0, TISSUE, AIR)).astype(np.uint8)
    return _scanned(image, mask, slice_mm, rng, scanner)


def _scanned(
    image: np.ndarray, mask: np.ndarray, slice_mm: int, rng: np.random.Generator, scanner: Scanner
) -> tuple[np.ndarray, np.ndarray]:
    """Bias field, blur, thick slices and noise; then the mean that was drawn, and the scanner's own numbers."""
    image = image * np.exp(scanner.bias * _grain(len(image), 0.6 * len(image), rng))
    image = gaussian_filter(image, scanner.blur)
    slices = len(image) // slice_mm
    image = image[: slices * slice_mm].reshape(slices, slice_mm, *image.shape[1:]).mean(axis=1)
    mask = mask[slice_mm // 2 :: slice_mm][:slices]
    image = np.abs(image + scanner.noise * rng.standard_normal(image.shape))  # magnitude images have no negatives
    image *= float(rng.uniform(*MEAN)) / image.mean()
    return np.rint(image * scanner.scale).clip(0, 65535).astype(np.uint16)[None], mask


def _body(middle: np.ndarray, size_mm: int, rng: np.random.Generator) -> np.ndarray:
    """Above 0 inside an ellipsoid that fills most of the volume, with a wavy surface."""
    axes = rng.uniform(0.40, 0.47, 3) * size_mm
    return 1 - np.linalg.norm(middle / axes[:, None, None, None], axis=0) + 0.06 * _grain(size_mm, size_mm / 5, rng)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` largest values are: every form gets the volume that was drawn."""
    return values >= np.partition(values.reshape(-1), -count)[-count]


def _grain(size_mm: int, grain: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, mean 0 and standard deviation 1, with structures of ``grain`` millimetres.

    Values on a coarse grid, interpolated along one axis after another.
    """
    coarse = max(4, int(np.ceil(size_mm / grain)) + 2)
    noise = rng.standard_normal((coarse,) * 3).astype(np.float32)
    places = rng.uniform(0, 1) + np.arange(size_mm) * (coarse - 2) / size_mm
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(coarse))).astype(np.float32)
    for _ in range(3):  # each turn interpolates the first axis and puts it last
        noise = np.tensordot(noise, weights, axes=([0], [1]))
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)
