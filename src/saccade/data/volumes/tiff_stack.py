"""TIFF stacks: several slices in one file, with sizes in millimetres where OME-XML or ImageJ wrote them down."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile

from saccade.data.formats import is_tiff
from saccade.data.images.length_units import length_um
from saccade.data.images.tiff import check_pieces, main_series, parse_xml, samples_dtype, to_samples
from saccade.data.limits import MAX_CHANNELS, SMALL_VOLUME, check_claim, check_voxels
from saccade.data.volumes.orientation import Volume, check_spacing, unplaced
from saccade.errors import DamagedFile

DEPTH = "ZIQ"  # z, or pages of which the file says nothing


def is_stack(data: bytes) -> bool:
    """Whether the bytes are a TIFF with more than one slice; False for what cannot be read."""
    if not is_tiff(data):
        return False
    try:
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            series = main_series(file, "")
            return any(axis not in "YXCS" and n > 1 for axis, n in zip(series.axes, series.shape))
    except Exception:  # a damaged file is named when it is read
        return False


def read_stack(data: bytes, name: str, beside: Callable[[str], bytes]) -> Volume:
    """One volume from slices, rows, columns and at most one channel axis. Raises DamagedFile, naming the file."""
    if not is_tiff(data):
        raise DamagedFile(f"{name}: not a TIFF file", hint="copy it again")
    with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
        series = main_series(file, name)
        order = _order(series.axes, series.shape, name)
        check_voxels(tuple(series.shape), np.dtype(series.dtype or np.uint8), name)
        check_pieces(series, len(data), name)
        claimed = math.prod(series.shape) * samples_dtype(series.keyframe).itemsize
        check_claim(claimed, len(data), name, small=SMALL_VOLUME)
        pixels = series.asarray().transpose(order)
        pixels = pixels.reshape([n for position, n in enumerate(pixels.shape) if position < 4])
        pixels = to_samples(pixels, series.keyframe)
        spacing = _ome_spacing(file.ome_metadata, name) if file.is_ome else _imagej_spacing(file)
    if pixels.dtype.kind not in "uif":
        raise DamagedFile(f"{name}: unsupported voxel type", got=pixels.dtype)
    if spacing is not None:
        check_spacing(spacing, name)
    return unplaced(pixels, spacing)


def _order(axes: str, shape: tuple[int, ...], name: str) -> list[int]:
    """Places of channel, depth, rows and columns, then those of the axes of length one."""
    sizes = dict(zip(axes, shape))
    long = [axis for axis in axes if sizes[axis] > 1 and axis not in "YX"]
    depth = [axis for axis in long if axis in DEPTH]
    channels = [axis for axis in long if axis in "CS"]
    if len(depth) != 1 or len(channels) > 1 or len(depth) + len(channels) != len(long) or sizes.get("Y", 0) < 1:
        raise DamagedFile(
            f"{name}: not a volume",
            got=f"axes {axes}, shape {shape}",
            expected="slices, rows, columns and at most one channel axis (OME axes CZYX)",
            hint="an image among volumes? keep them in folders of their own",
        )
    if channels and sizes[channels[0]] > MAX_CHANNELS:
        raise DamagedFile(f"{name}: {sizes[channels[0]]} channels", expected=f"at most {MAX_CHANNELS}")
    spare = [axis for axis in axes if sizes[axis] == 1 and axis not in "YX"]
    first = channels or spare[:1]
    names_in_order = [*first, *depth, "Y", "X", *(axis for axis in spare if axis not in first)]
    return [axes.index(axis) for axis in names_in_order]


def _ome_spacing(xml: str | None, name: str) -> tuple[float, float, float] | None:
    """(z, y, x) in mm; None unless all three are given in a unit of length."""
    try:
        pixels = next(e for e in parse_xml(xml or "", name).iter() if e.tag.endswith("Pixels"))
    except (ParseError, StopIteration):
        return None
    sides = []
    for axis in "ZYX":
        unit = length_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        text = pixels.get(f"PhysicalSize{axis}")
        if unit is None or text is None:
            return None
        sides.append(float(text) * unit / 1000)
    return sides[0], sides[1], sides[2]


def _imagej_spacing(file: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """The same from ImageJ's description and the resolution tags, which count pixels a unit."""
    about: dict[str, Any] = file.imagej_metadata or {}
    unit = length_um(str(about.get("unit", "")))
    tags = file.pages.first.tags
    if unit is None or "spacing" not in about or "XResolution" not in tags or "YResolution" not in tags:
        return None
    sides = [float(about["spacing"])]
    for tag in ("YResolution", "XResolution"):
        pixels, units = tags[tag].value
        sides.append(units / pixels if pixels else math.nan)
    return sides[0] * unit / 1000, sides[1] * unit / 1000, sides[2] * unit / 1000
