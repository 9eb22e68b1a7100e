"""Opening data of every kind: ``open_source``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saccade.base.contracts import Source
from saccade.data import feature_grids
from saccade.data.formats import by_name, has_suffix, suffixes
from saccade.data.limits import damage_named
from saccade.data.slides.detect import find_slides
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiling import Tiling
from saccade.data.sources.files import FileSource
from saccade.data.sources.folder import FolderSource
from saccade.data.sources.source import Selection
from saccade.data.volumes.tiff_stack import is_stack
from saccade.errors import DataError, UsageError, unknown

FOR_SLIDES = "--mpp, --tile, --tissue, --slide-mpp and --skip-unknown-mpp are for slides; these are other images"


def absolute(path: str | Path) -> str | Path:
    """The absolute path of data; ``synthetic:`` names stay as they are."""
    return path if str(path).startswith("synthetic:") else Path(path).resolve()


def open_source(
    path: str | Path,
    *,
    manifest: str | Path | None = None,
    label: str | None = None,
    group: str | None = None,
    keep_na: bool = False,
    tiling: Tiling | None = None,
) -> Source:
    """Open images, volumes, slides or feature grids, whatever ``path`` is; docs/guides/data.md lists the layouts.

    Parameters
    ----------
    path : str or Path
        A folder, archive, array file, table, slide or volume in a format of ``saccade.data.formats``, or one of
        ``synthetic:tissue``, ``synthetic:volume``, ``synthetic:slide``.
    manifest : str or Path, optional
        CSV or Parquet table (columns path, label, split, group) for images of another folder.
    label, group : str, optional
        Columns of the table with the class and with the patient, slide or source tile.
    keep_na : bool
        Classes and groups may be called n/a, NA or nan; by default these stand for no value.
    tiling : Tiling, optional
        How slides are cut into tiles; an error for other images.

    Returns
    -------
    Source
        Images in a stable order. Nothing is decoded yet.

    Raises
    ------
    DataError
        The data do not exist, are damaged or have an unknown format; the message names the path.
    UsageError
        An option has no effect on this kind of data.

    Notes
    -----
    Empty strings count as None, because settings files have no None.

    Examples
    --------
    >>> source = open_source("synthetic:tissue?n=16&size=32")
    >>> len(source), source.axes, source.read(0).pixels.shape
    (16, 2, (3, 32, 32))
    """
    manifest, label, group = Path(manifest) if manifest else None, label or None, group or None
    if str(path).startswith("synthetic:"):
        if manifest or label or group:
            raise UsageError("synthetic images bring their own labels and groups", got=path)
        return _synthetic(str(path), tiling or Tiling())
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError("no such file or folder", got=path, hint="check the path; or try synthetic:tissue")
    if manifest is not None and not manifest.is_file():
        raise DataError("table not found", got=manifest)
    if (path / feature_grids.FILE).is_file():
        if manifest or label or group:
            raise UsageError("feature grids have the labels and groups of their slides", got=path)
        return feature_grids.open_grids(path)
    if path.is_dir() and feature_grids.holds_features(path):
        return feature_grids.open_features(path, manifest=manifest, label=label, group=group, keep_na=keep_na)
    tiling = tiling or Tiling()
    slides = find_slides(path, manifest=manifest, label=label, group=group, keep_na=keep_na, tiling=tiling)
    if slides is not None:
        return slides
    if tiling.asked:
        raise UsageError(FOR_SLIDES, got=path)
    if path.is_dir():
        return FolderSource(path, manifest=manifest, label=label, group=group, keep_na=keep_na)
    return _open_file(path, manifest=manifest, label=label, group=group, keep_na=keep_na)


def _open_file(path: Path, *, manifest: Path | None, label: str | None, group: str | None, keep_na: bool) -> Source:
    """One file that is not a slide."""
    archive, array = by_name(path.name, "archive"), by_name(path.name, "array")
    if archive is not None:
        with damage_named(str(path)):
            source: Source = archive.load()(path, manifest=manifest, label=label, group=group, keep_na=keep_na)
        return source
    if array is not None:
        if manifest or label or group:
            raise UsageError("an array file brings its own labels and has no columns", got=path)
        with damage_named(str(path)):
            source = array.load()(path)
        return source
    if has_suffix(path.name, "table"):
        if manifest:
            raise UsageError("two tables were named", got=f"{path} and {manifest}", hint="DATA is then the folder")
        return FolderSource(path.parent, manifest=path, label=label, group=group, keep_na=keep_na)
    volume = by_name(path.name, "volume")
    if volume is not None and (volume.name != "TIFF stack" or is_stack(path.read_bytes())):
        if manifest or label or group:
            raise UsageError("a single volume has no table", got=path, hint="give its folder")
        return FolderSource(path.parent, only=[path.name])
    raise _unknown_format(path)


def tiling_in(data: Mapping[str, Any]) -> Tiling:
    """The tiling in the ``data`` settings of a run; ``tile_px`` is 0 in runs on other images than slides."""
    if data.get("tile_px") == 0:
        return Tiling()
    return Tiling(
        data.get("mpp") or None,
        data.get("tile_px"),
        data.get("tissue"),
        data.get("slide_mpp") or None,
        skip_unknown_mpp=bool(data.get("skip_unknown_mpp")),
    )


def open_data(data: Mapping[str, Any], tiling: Tiling | None = None) -> Source:
    """The images that the ``data`` settings of a run name, cut into tiles as these settings or ``tiling`` say.

    Raises like ``open_source``.
    """
    columns = {name: data.get(name) or None for name in ("manifest", "label", "group")}
    keep_na = bool(data.get("keep_na"))
    return open_source(data["source"], tiling=tiling or tiling_in(data), keep_na=keep_na, **columns)


def left_aside(source: Source) -> str:
    """Why a table beside the images is not used; "" where there is none or it is used."""
    if isinstance(source, Selection):
        return left_aside(source.source)
    return source.aside if isinstance(source, (FileSource, SlideTiles)) else ""


def unreadable_files(source: Source) -> tuple[list[tuple[str, str]], int]:
    """(id, reason) of the slides, or files of features, that cannot be read, and how many there are in all.

    Both are empty for other images, whose damage is met when they are decoded.
    """
    if isinstance(source, Selection):
        return unreadable_files(source.source)
    if isinstance(source, SlideTiles):
        return source.unreadable, len(source.unreadable) + len(source.entries)
    if isinstance(source, feature_grids.GridSource):
        return source.unreadable, len(source.unreadable) + len(source.files)
    return [], 0


def _synthetic(text: str, tiling: Tiling) -> Source:
    kind, _, query = text.removeprefix("synthetic:").partition("?")
    pairs = {key: value for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)}
    if kind == "slide":
        from saccade.data.synthetic.slides import draw_slides, read_drawing

        return open_source(draw_slides(*read_drawing(pairs)), tiling=tiling)
    from saccade.data.synthetic.images import open_tissue, open_volume

    kinds: dict[str, Callable[[dict[str, str]], Source]] = {"tissue": open_tissue, "volume": open_volume}
    if kind not in kinds:
        raise unknown("synthetic data", kind, [*kinds, "slide"])
    if tiling.asked:
        raise UsageError(FOR_SLIDES, got=text)
    return kinds[kind](pairs)


def _unknown_format(path: Path) -> DataError:
    if has_suffix(path.name, "image"):
        return DataError(f"{path} is a single image", hint="give its folder; single images are for saccade attend")
    return DataError(
        f"{path}: unknown file format",
        expected="a folder, " + ", ".join(suffixes("archive", "array", "table", "volume", "slide", shared=False)),
    )
