"""What ``saccade embed`` does: one feature vector for every image, tile or slide of some data, in tables or files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.base.locks import lock_file
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
    """Where to read what is known of the images: a table that lies apart, and its columns (see open_source)."""

    labels: Path | None = None
    label: str | None = None
    group: str | None = None


TABLES = "FILE.parquet or DATABASE/NAME.lance"
OF_SLIDES = "FILE.parquet, DATABASE/NAME.lance, FOLDER.h5, or a name without an ending for a folder"


def _check_name(out: str | Path | None, what: str, *, folders: bool) -> None:
    """Refuse, before anything is computed, names that say another form than would be written.

    what      the features, in words      folders   whether they may go into a folder, with a file a slide
    """
    if out is None or stores.is_lance(out):
        return
    place, expected = Path(out), OF_SLIDES if folders else TABLES
    if place.suffix not in ((".parquet", ".h5", "") if folders else (".parquet",)):
        raise UsageError(f"{what} cannot be written as {place.name}", got=f"out {out}", expected=expected)
    if place.suffix == ".parquet" and place.is_dir():
        raise UsageError(f"{out} is a folder, where a file was to be written", expected=expected)
    if place.suffix != ".parquet" and place.exists() and not place.is_dir():
        raise UsageError(f"{out} is a file, where a folder was to be written", hint="remove it, or take another name")


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
    if tiling.mpp or tiling.tile_px or tiling.tissue is not None:
        raise UsageError("a hierarchy cuts slides as it was trained", hint="leave out --mpp, --tile and --tissue")
    _check_name(out, "vectors of slides", folders=False)
    if out is not None:
        stores.check_writable(out)
    named = {"data.manifest": where.labels, "data.label": where.label, "data.group": where.group}
    settings: dict[str, Any] = {key: str(value) for key, value in named.items() if value is not None}
    settings |= {} if tiling.slide_mpp is None else {"data.slide_mpp": tiling.slide_mpp}
    table = evaluate_slides.embed(
        run, evaluate_slides.slides_of(run, str(absolute(data)), settings), console, max_bad=max_bad
    )
    table = dataclasses.replace(table, about=table.about | _origin(run, data, where))
    if out is not None:
        stores.write(out, table)
    return table


def _origin(model: str | Path, data: str | Path, where: LabelOptions) -> dict[str, str | None]:
    """What a table says of where it comes from."""
    return {
        "made_by": str(model) if str(model).startswith(("random:", "timm:")) else str(Path(model).resolve()),
        "data": str(absolute(data)),
        "labels": str(Path(where.labels).resolve()) if where.labels else None,
    }


def _slide_embedder(model: str | Path, tiles: SlideTiles, *, grey: bool, max_bad: float, console: Console) -> Embedder:
    loaded = load_for_tiles(model, tiles)
    loaded = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, grey=loaded.spec.grey or grey))
    return Embedder(loaded, tiles, say=console.say, max_bad=max_bad)


def _each(told: Callable[[int, int, dict[str, float]], None], done: int, total: int) -> None:
    """Images are read by the thousand a second: every 64th is told, and the last."""
    if done % 64 == 0 or done == total:
        told(done, total, {})


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
    """One feature vector for every image of ``data``; written to ``out``: FILE.parquet, or DATABASE/NAME.lance.

    Of slides, one for every tile (``tiling``; what is left open is as the model was trained): FILE.parquet, or
    FOLDER.h5 with a file a slide. They are not held in memory; what is returned says which files were written.
    A hierarchy gives one vector a slide, in one table. Raises UsageError for other names than these.
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
            raise UsageError("a hierarchy sees colour as its tile level does", hint="leave out --grey")
        return _embed_hierarchy(Path(model), data, out, where, cut, max_bad=max_bad, console=console)
    _check_name(out, "features", folders=True)
    device = runtime.pick_device()
    source = open_source(
        data, manifest=where.labels, label=where.label, group=where.group, tiling=as_trained(model, tiling)
    )
    if isinstance(source, SlideTiles):
        embedder = _slide_embedder(model, source, grey=grey, max_bad=max_bad, console=console)
        report = console.progress
        return write_features(
            embedder, out, origin=_origin(model, data, where), report=lambda done, total: report(done, total, {})
        )
    _check_name(out, "features of images", folders=False)
    if out is not None:
        stores.check_writable(out)
    progress = console.progress
    decoded = embed_images.Decoded(source, max_bad=max_bad, report=lambda done, total: _each(progress, done, total))
    loaded, _ = fitted_model(model, decoded)
    table = embed_images.embed_model(
        loaded,
        decoded,
        device=device,
        precision=runtime.usual_precision(device),
        grey=grey,
        report=lambda done, total: progress(done, total, {"features": done}),
    )
    about = table.about | {"weights": fingerprint(loaded.backbone)} | _origin(model, data, where)
    table = dataclasses.replace(table, about=about)
    if out is not None:
        stores.write(out, table)
    return table
