"""From a volume's own numbers to 0..1, by a rule that is decided from the data and always stated.

range    8 bits: 0..255
window   CT: low..high in Hounsfield units, e.g. -160..240 for soft tissue; what lies outside is cut off
robust   the rest: from the 0.5 to the 99.5 % quantile of every volume by itself, as MR has no unit of its own
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from saccade.base.contracts import InputSpec, Sample, Source
from saccade.errors import DamagedFile, DataError, UsageError

Kind = Literal["range", "window", "robust"]
QUANTILES = (0.005, 0.995)
WINDOW_HU = (-1000.0, 1000.0)
AIR_HU = (-3100.0, -900.0)  # where the darkest half percent of a CT lies: air, or the padding outside the round field
SEEN = 2**20  # voxels the quantiles are taken from, evenly spread
STEPS = 65535
LOOKED_AT = 16


@dataclass(frozen=True)
class Intensity:
    """The rule and, for ``window``, its ends."""

    kind: Kind
    window: tuple[float, ...] = ()

    def text(self) -> str:
        if self.kind == "window":
            return f"window {self.window[0]:g} to {self.window[1]:g} HU"
        return "0 to 255, as 8 bits are" if self.kind == "range" else "0.5 to 99.5 % of every volume by itself"


def make_intensity(kind: str, window: tuple[float, ...] = ()) -> Intensity:
    """The rule by its name.

    Raises UsageError for an unknown name or an invalid window.

    Examples
    --------
    >>> make_intensity("window", (-160, 240)).text()
    'window -160 to 240 HU'
    """
    if kind not in get_args(Kind):
        raise UsageError(f"unknown intensity {kind!r}", expected=" or ".join(get_args(Kind)))
    if kind != "window":
        if window:
            raise UsageError(f"data.window has no effect with data.intensity={kind}", hint="data.intensity=window")
        return Intensity(kind)  # type: ignore[arg-type]
    window = window or WINDOW_HU
    if len(window) != 2 or not window[0] < window[1]:
        raise UsageError("data.window is two numbers, low and high", got=window, expected="[-160, 240], for example")
    return Intensity("window", (float(window[0]), float(window[1])))


def intensity_of(spec: InputSpec) -> Intensity | None:
    """The rule a model is used to; None for models of images, and where it is open."""
    return make_intensity(spec.intensity, spec.window) if spec.intensity else None


def decide_intensity(source: Source) -> Intensity:
    """The rule that fits a source: window for CT, range for 8 bits, robust for the rest.

    Up to 16 volumes, evenly spread over the source, are read. Raises DataError where none of them can be.
    """
    kinds: list[Kind] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int)):
        try:
            kinds.append(likely_kind(source.read(int(index))))
        except DamagedFile:
            continue
    if not kinds:
        raise DataError(f"{source.name}: no volume can be read", hint="saccade show lists the reasons")
    return usual_intensity(kinds)


def usual_intensity(kinds: Iterable[str]) -> Intensity:
    """The rule that all volumes call for, or else robust: the one that fits volumes of any kind."""
    distinct = set(kinds)
    return make_intensity(distinct.pop() if len(distinct) == 1 else "robust")


def likely_kind(sample: Sample) -> Kind:
    """What one volume calls for. A CT is known by its header or, in files that do not say, by air at -1000 HU."""
    if sample.pixels.dtype == np.uint8:
        return "range"
    if sample.modality is not None:
        return "window" if sample.modality == "CT" else "robust"
    low, high = quantiles(sample.pixels, sample.padding)
    is_integer = sample.pixels.dtype.kind in "iu" or bool((spread(sample.pixels) % 1 == 0).all())
    has_tissue = high > 0 or padding_of(sample.pixels) is not None  # only CT is padded below every Hounsfield unit
    return "window" if is_integer and AIR_HU[0] <= low <= AIR_HU[1] and has_tissue else "robust"


def spread(pixels: np.ndarray) -> np.ndarray:
    """At most about a million of the voxels, evenly spread."""
    flat = pixels.reshape(-1)
    return flat[:: max(1, flat.size // SEEN)]


def padding_of(pixels: np.ndarray) -> float | None:
    """The value that fills what was not measured, e.g. -32768 around the round field of a CT; None for none.

    It is below every physical Hounsfield unit, and further from the other values than these are from each other.
    """
    values = spread(pixels)
    lowest = float(values.min())
    if not lowest < AIR_HU[0]:
        return None
    others = values[values > lowest]
    if not others.size:
        return None
    low, high = float(others.min()), float(others.max())
    return lowest if low - lowest > high - low else None


def constant_rim(pixels: np.ndarray) -> tuple[float, tuple[slice, ...]] | None:
    """The value of outer planes that hold nothing else, as zero-filling leaves them, and the box inside them.

    None where there are no such planes, or nothing inside them. ``pixels`` is [T Y X] or [C T Y X].
    """
    if pixels.ndim < 3:
        return None
    value = pixels[(0,) * pixels.ndim]
    if (pixels[..., -1, -1, -1] != value).any() or (pixels[..., 0, 0, 0] != value).any():
        return None
    box = []
    for axis in (-3, -2, -1):
        others = tuple(other for other in range(-pixels.ndim, 0) if other != axis)
        inside = np.flatnonzero((pixels != value).any(axis=others))
        if not inside.size:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    if all(part.stop - part.start == side for part, side in zip(box, pixels.shape[-3:])):
        return None
    return float(value), tuple(box)


def quantiles(pixels: np.ndarray, padding: tuple[float, float] | None = None) -> tuple[float, float]:
    """The 0.5 and 99.5 % quantile of a volume without what was not measured.

    Parameters
    ----------
    pixels : ndarray
        [T Y X] or [C T Y X].
    padding : tuple of float, optional
        Lowest and highest value that the header calls padding.

    Returns
    -------
    tuple of float
        Left out are values of ``padding``, constant outer planes (``constant_rim``), and ``padding_of``.
    """
    rim = constant_rim(pixels)
    inner: Any = ... if rim is None else (..., *rim[1])
    values = spread(pixels[inner])
    if padding is not None:
        measured = values[(values < padding[0]) | (values > padding[1])]
        values = measured if measured.size else values
    lowest = padding_of(values)
    if lowest is not None:
        values = values[values > lowest]
    low, high = np.quantile(values.astype(np.float32), QUANTILES)
    return float(low), float(high)


def to_unit(pixels: np.ndarray, how: Intensity, name: str, padding: tuple[float, float] | None = None) -> np.ndarray:
    """Bring a volume to 0..1 by a rule.

    Parameters
    ----------
    pixels : ndarray
        [C T Y X]; each channel has its own quantiles.
    how : Intensity
        The rule.
    name : str
        File name for messages.
    padding : tuple of float, optional
        Lowest and highest value that the header calls padding; left out of the quantiles.

    Returns
    -------
    ndarray
        uint8 unchanged for ``range``; otherwise uint16 in steps of 1/65535, which takes half the memory of float32.

    Raises
    ------
    DamagedFile
        Some values are NaN or infinite, or ``range`` is asked of data that are not uint8.

    Examples
    --------
    >>> ct = np.array([-2000.0, -160.0, 40.0, 240.0, 900.0]).reshape(1, 1, 1, 5)
    >>> to_unit(ct, make_intensity("window", (-160.0, 240.0)), "ct").ravel().tolist()
    [0, 0, 32767, 65535, 65535]
    """
    if how.kind == "range":
        if pixels.dtype != np.uint8:
            raise DamagedFile(
                f"{name}: data.intensity=range is for 8-bit volumes", got=pixels.dtype, hint="data.intensity=robust"
            )
        return pixels
    scaled = np.empty(pixels.shape, np.uint16)
    for channel, values in enumerate(pixels):
        if not np.isfinite(values).all():
            raise DamagedFile(f"{name}: contains NaN or infinite values")
        low, high = how.window if how.kind == "window" else quantiles(values, padding)
        if high <= low:  # nearly all voxels alike, as in a mask
            low, high = float(values.min()), float(values.max())
        unit = values.astype(np.float32)
        unit -= low
        unit *= STEPS / ((high - low) or 1.0)
        scaled[channel] = np.rint(unit, out=unit).clip(0, STEPS, out=unit)
    return scaled
