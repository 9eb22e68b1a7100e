"""``saccade embed``: one feature vector per image, tile or slide, in a table or in files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.base.locks import lock_file
from saccade.base.places import origin_of_table
from saccade.data.open import absolute, open_source
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiling import Tiling
from saccade.errors import UsageError
from saccade.features import embed_images, stores
from saccade.features.embed_slides import EmbeddedSlides, Embedder, as_trained, load_for_tiles, write_features
from saccade.features.table import FeatureTable
from saccade.hierarchy import evaluate_slides
from saccade.hierarchy import settings as layout
from saccade.models.backbones.weights import fingerprint
from saccade.tasks.evaluate import fitted_model
from saccade.train.loop import Console, Quiet


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """Where labels and groups are read from: a CSV or Parquet table, and the names of its columns."""

    labels: Path | None = None
    label: str | None = None
    group: str | None = None
    keep_na: bool = False
    """Classes and groups may be called n/a, NA or nan; by default these stand for no value."""


TABLES = "FILE.parquet or DATABASE/NAME.lance"
OF_SLIDES = "FILE.parquet, DATABASE/NAME.lance, FOLDER.h5, or a name without an ending for a folder"


def _check_name(out: str | Path | None, what: str, *, folders: bool) -> None:
    """Raise UsageError, before anything is computed, for a name whose suffix does not fit what would be written.

    what      the features, for the message      folders   whether a folder with one file per slide is possible
    """
    if out is None or stores.is_lance(out):
        return
    path, expected = Path(out), OF_SLIDES if folders else TABLES
    if path.suffix not in ((".parquet", ".h5", "") if folders else (".parquet",)):
        raise UsageError(f"{what} cannot be written as {path.name}", got=f"out {out}", expected=expected)
    if path.suffix == ".parquet" and path.is_dir():
        raise UsageError(f"{out} is a folder, but a file would be written", expected=expected)
    if path.suffix != ".parquet" and path.exists() and not path.is_dir():
        raise UsageError(f"{out} is a file, but a folder would be written", hint="remove it, or choose another name")


def _embed_hierarchy(
    run: Path,
    data: str | Path,
    out: str | Path | None,
    where: LabelOptions,
    tiling: Tiling,
    *,
    max_bad: float,
    console: Console,
) -> FeatureTable:
    if tiling.mpp or tiling.tile_px or tiling.min_tissue is not None:
        raise UsageError("a hierarchy cuts tiles as in training", hint="leave out --mpp, --tile and --tissue")
    _check_name(out, "vectors of slides", folders=False)
    if out is not None:
        stores.check_writable(out)
    columns = {"data.manifest": where.labels, "data.label": where.label, "data.group": where.group}
    settings: dict[str, Any] = {key: str(value) for key, value in columns.items() if value is not None}
    settings |= {} if tiling.slide_mpp is None else {"data.slide_mpp": tiling.slide_mpp}
    settings |= {"data.skip_unknown_mpp": tiling.skip_unknown_mpp, "data.keep_na": where.keep_na}
    table = evaluate_slides.embed(
        run, evaluate_slides.slides_of(run, str(absolute(data)), settings), console, max_bad=max_bad
    )
    table = dataclasses.replace(table, about=table.about | _origin(run, data, where, out))
    if out is not None:
        stores.write(out, table)
    return table


def _origin(model: str | Path, data: str | Path, where: LabelOptions, out: str | Path | None) -> dict[str, str | None]:
    """Model, data and label table, as the metadata of a feature table hold them; absolute paths where none is made."""
    paths = {
        "made_by": str(model) if str(model).startswith(("random:", "timm:")) else str(Path(model).resolve()),
        "data": str(absolute(data)),
        "labels": str(Path(where.labels).resolve()) if where.labels else None,
    }
    is_table = out is not None and (stores.is_lance(out) or str(out).endswith(".parquet"))
    return paths if out is None else origin_of_table(paths, out) if is_table else {}


def _slide_embedder(model: str | Path, tiles: SlideTiles, *, grey: bool, max_bad: float, console: Console) -> Embedder:
    loaded = load_for_tiles(model, tiles)
    loaded = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, grey=loaded.spec.grey or grey))
    return Embedder(loaded, tiles, say=console.say, max_bad=max_bad)


def _report_every_64th(report: Callable[[int, int, dict[str, float]], None], done: int, total: int) -> None:
    """Thousands of images are read per second: report every 64th and the last."""
    if done % 64 == 0 or done == total:
        report(done, total, {})


def embed(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    grey: bool = False,
    max_bad: float = 0.05,
    labels: LabelOptions | None = None,
    tiling: Tiling | None = None,
    console: Console | None = None,
) -> FeatureTable | EmbeddedSlides:
    """Compute one feature vector per image, tile or slide.

    Parameters
    ----------
    model : str or Path
        Run folder, weights file, ``random:NAME`` or ``timm:NAME``; a hierarchy gives one vector per slide.
    data : str or Path
        Images, volumes or slides; see ``open_source``.
    out : str or Path, optional
        FILE.parquet or DATABASE/NAME.lance; for slides also FOLDER.h5 or FOLDER, with one file per slide.
    grey : bool
        Convert the images to greyscale.
    max_bad : float
        Largest fraction of damaged files that is tolerated.
    labels : LabelOptions, optional
        Table with labels and groups.
    tiling : Tiling, optional
        How slides are cut into tiles; unset values are those of the model's training.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    FeatureTable or EmbeddedSlides
        For slides, the features are not held in memory: the result lists the files that were written.

    Raises
    ------
    UsageError, DataError, ModelError, StorageError

    Examples
    --------
    >>> import saccade
    >>> table = saccade.embed("random:resnet10_w8", "synthetic:tissue?n=8&size=32")
    >>> table.features.shape
    (8, 64)
    """
    with _lock_table(out):
        return _embed(model, data, out, grey, max_bad, labels or LabelOptions(), tiling, console or Quiet())


def _lock_table(out: str | Path | None) -> contextlib.AbstractContextManager[None]:
    """The lock on a table in a file system. A folder with a file per slide needs none: each file is whole or absent."""
    if out is None or "://" in str(out) or not (stores.is_lance(out) or Path(out).suffix == ".parquet"):
        return contextlib.nullcontext()
    return lock_file(Path(out))


def _embed(
    model: str | Path,
    data: str | Path,
    out: str | Path | None,
    grey: bool,
    max_bad: float,
    where: LabelOptions,
    tiling: Tiling | None,
    console: Console,
) -> FeatureTable | EmbeddedSlides:
    runtime.keep_freed_memory()
    if layout.is_hierarchy(model):
        cut = tiling or Tiling()
        if grey:
            raise UsageError(
                "--grey has no effect on a hierarchy: its tile level fixes the color mode", hint="leave out --grey"
            )
        return _embed_hierarchy(Path(model), data, out, where, cut, max_bad=max_bad, console=console)
    _check_name(out, "features", folders=True)
    device = runtime.pick_device()
    source = open_source(
        data,
        manifest=where.labels,
        label=where.label,
        group=where.group,
        keep_na=where.keep_na,
        tiling=as_trained(model, tiling),
    )
    if isinstance(source, SlideTiles):
        embedder = _slide_embedder(model, source, grey=grey, max_bad=max_bad, console=console)
        report = console.progress
        return write_features(
            embedder, out, origin=_origin(model, data, where, out), report=lambda done, total: report(done, total, {})
        )
    _check_name(out, "features of images", folders=False)
    if out is not None:
        stores.check_writable(out)
    progress = console.progress
    decoded = embed_images.Decoded(
        source, max_bad=max_bad, report=lambda done, total: _report_every_64th(progress, done, total)
    )
    loaded, _ = fitted_model(model, decoded)
    table = embed_images.embed_model(
        loaded,
        decoded,
        device=device,
        precision=runtime.usual_precision(device),
        grey=grey,
        report=lambda done, total: progress(done, total, {"features": done}),
    )
    about = table.about | {"weights": fingerprint(loaded.backbone)} | _origin(model, data, where, out)
    table = dataclasses.replace(table, about=about)
    if out is not None:
        stores.write(out, table)
    return table
