"""``saccade attend``: attention maps of an image, a volume, a slide or a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.base.files import check_writable
from saccade.cli.options import Json, TilingFlags, option_values, refuse
from saccade.cli.progress import ProgressBar, print_json
from saccade.errors import UsageError, unknown


@dataclasses.dataclass(frozen=True)
class QueryFlags:
    """Which attention is asked for."""

    query: Annotated[
        str | None,
        typer.Option(
            "--query", help="cls (default); Y,X in pixels; z,y,x in voxels; for a sentence a word or its number."
        ),
    ] = None
    layer: Annotated[int | None, typer.Option("--layer", help="Layer, counted from 0; -1 is the last (default).")] = (
        None
    )
    head: Annotated[str | None, typer.Option("--head", help="all (default), mean, or the number of a head.")] = None


@dataclasses.dataclass(frozen=True)
class ImageFlags:
    """Options of images and volumes."""

    rollout: Annotated[bool, typer.Option("--rollout", help="Attention rollout over all layers.")] = False
    size: Annotated[
        int | None,
        typer.Option("--size", help="Shorter side of the network input in pixels (default: as in training)."),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="Also save a mask of the fewest patches that hold this fraction of the attention."
        ),
    ] = None
    masks: Annotated[
        str | None,
        typer.Option(
            "--masks",
            "--mask",
            metavar="FILE|FOLDER|auto",
            help="Ground-truth mask for the Jaccard index with the attention: a file, a folder, or auto, those "
            "recognised beside the image.",
        ),
    ] = None

    stretch: Annotated[
        bool,
        typer.Option("--stretch", help="Colours from smallest to largest value, not in multiples of the even share."),
    ] = False


@dataclasses.dataclass(frozen=True)
class TextFlags:
    """Options of sentences."""

    tokens: Annotated[bool, typer.Option("--tokens", help="Sentence: tokens instead of whole words.")] = False
    special: Annotated[
        bool,
        typer.Option("--special", help="Sentence: also draw [CLS] and [SEP]; their fraction is always printed."),
    ] = False


@dataclasses.dataclass(frozen=True)
class SlideFlags:
    """Options of slides and hierarchies."""

    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            help="Slide: tile (similarity of tiles) or patch (attention in tiles); hierarchy: also region, composed.",
        ),
    ] = None
    max_bad: Annotated[
        float | None,
        typer.Option("--max-bad", help="Slide: largest fraction of unreadable tiles that is tolerated (default 0.05)."),
    ] = None


def attend(
    which: QueryFlags,
    of_image: ImageFlags,
    of_text: TextFlags,
    of_slide: SlideFlags,
    tiling: TilingFlags,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As elsewhere; with --text a transformers folder.")
    ] = None,
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="One image, volume or slide.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="A sentence instead of an image.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG, SVG, CSV; volume: also .nii.gz; sentence: HTML; slide: TIF, GEOJSON, folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show exact attention of any query, layer and head, computed on the model as trained.

    Image or volume: saccade attend MODEL IMAGE. Sentence: saccade attend [MODEL] --text "..." (default model:
    all-MiniLM-L6-v2), printed, and drawn to --out. Slide: a heatmap as PNG, TIFF and GeoJSON for QuPath, with the tiles
    of highest and lowest score; --query Y,X is in pixels of full resolution.
    """
    if text is not None:
        refuse({"IMAGE": image} | option_values(of_image), "with --text")
        refuse(option_values(of_slide) | option_values(tiling), "on sentences")
        _attend_text(model, text, which, of_text, out, as_json)
        return
    if image is None:
        raise UsageError("MODEL and IMAGE are missing", expected='saccade attend MODEL IMAGE, or --text "..."')
    refuse(option_values(of_text), "on images, only on sentences (--text)")
    if _is_slide(image, tiling):
        refuse(option_values(of_image) | {"--head": None if which.head == "all" else which.head}, "on a slide")
        if model is not None and _is_hierarchy(model):
            refuse({"--query": which.query, "--layer": which.layer}, "on a hierarchy")
            refuse(option_values(tiling) | {"--slide-mpp": None}, "on a hierarchy, which cuts tiles as in training")
            _attend_hierarchy(model, image, of_slide, tiling.slide_mpp, out, as_json)
            return
        _attend_slide(model, image, which, of_slide, tiling, out, as_json)
        return
    _refuse_several(image, tiling)
    refuse(option_values(of_slide) | option_values(tiling), "on images, only on slides")
    if model is None:
        raise UsageError("MODEL is missing", expected="saccade attend MODEL IMAGE")
    _attend_image(model, image, which, of_image, out, as_json)


def _attend_image(
    model: str, image: Path, which: QueryFlags, flags: ImageFlags, out: Path | None, as_json: bool
) -> None:
    from saccade.api import attend as run
    from saccade.attention.options import AttendOptions

    options = AttendOptions(
        query=which.query or "cls",
        layer=which.layer,
        head=which.head or "all",
        rollout=flags.rollout,
        size_px=flags.size,
        threshold=flags.threshold,
        mask=flags.masks,
        stretch=flags.stretch,
    )
    target = out or Path(f"{Path(image.name.removesuffix('.gz')).stem}-attention.png")
    check_writable(target)
    result = run(model, image, options=options)
    path = result.save(target)
    print_json(result.to_dict() | {"file": str(path)}) if as_json else typer.echo(f"{result.text()}\n{path}")


def _is_slide(image: Path, tiling: TilingFlags) -> bool:
    from saccade.data.slides.detect import is_slide

    return is_slide(image, asked=any(value is not None for value in option_values(tiling).values()))


def _refuse_several(image: Path, tiling: TilingFlags) -> None:
    """Raise UsageError for a table and for a folder of slides: attend takes one image or slide."""
    from saccade.data.formats import has_suffix
    from saccade.data.slides.detect import holds_slides

    hint = "name one file; for a slide without resolution, add --slide-mpp"
    if image.is_file() and has_suffix(image.name, "table"):
        raise UsageError(f"attend takes one slide or image, and {image} is a table", hint=hint)
    if image.is_dir() and holds_slides(image, asked=any(value is not None for value in option_values(tiling).values())):
        raise UsageError(f"attend takes one slide, and {image} is a folder of slides", hint=hint)


def _attend_slide(
    model: str | None,
    slide: Path,
    which: QueryFlags,
    flags: SlideFlags,
    tiling: TilingFlags,
    out: Path | None,
    as_json: bool,
) -> None:
    from saccade.api import attend_slide as run
    from saccade.attention.slide import LEVELS, SlideOptions, check_form

    target = out or Path(f"{slide.stem}-attention")
    check_form(target)
    check_writable(target)
    if model is None:
        raise UsageError("MODEL is missing", expected="saccade attend MODEL SLIDE")
    if flags.level not in (None, *LEVELS):
        raise unknown("level", str(flags.level), LEVELS)
    explicit: dict[str, Any] = {"query": which.query, "layer": which.layer} | vars(flags)
    explicit = {key: value for key, value in explicit.items() if value is not None}
    with ProgressBar() as bar:
        result = run(model, slide, options=SlideOptions(**explicit, tiling=tiling.tiling()), console=bar)
        files = result.save(target)
    if as_json:
        print_json(result.to_dict() | {"files": [str(file) for file in files]})
        return
    typer.echo("\n".join([result.text(), *map(str, files)]))


def _is_hierarchy(model: str) -> bool:
    from saccade.hierarchy.settings import is_hierarchy

    return is_hierarchy(model) or (Path(model) / "head" / "head.json").is_file()


def _attend_hierarchy(
    model: str, slide: Path, flags: SlideFlags, slide_mpp: float | None, out: Path | None, as_json: bool
) -> None:
    from saccade.api import attend_hierarchy as run
    from saccade.attention.slide import check_form

    target = out or Path(f"{slide.stem}-attention")
    check_form(target)
    check_writable(target)
    if flags.level is None and target.suffix:
        raise UsageError("one file cannot hold the maps of all levels", got=target, hint="use a folder, or one --level")
    max_bad = 0.05 if flags.max_bad is None else flags.max_bad
    files: list[Path] = []
    with ProgressBar() as bar:
        maps = run(model, slide, level=flags.level, slide_mpp=slide_mpp, max_bad=max_bad, console=bar)
        for level_map in maps:
            files += level_map.save(target / level_map.options.level if len(maps) > 1 else target)
    if as_json:
        print_json([level_map.to_dict() for level_map in maps] + [{"files": [str(file) for file in files]}])
        return
    typer.echo("\n".join([*(level_map.text() for level_map in maps), *map(str, files)]))


def _attend_text(
    model: str | None, text: str, which: QueryFlags, flags: TextFlags, out: Path | None, as_json: bool
) -> None:
    from saccade.api import attend_text as run
    from saccade.models.text_tokens import TextOptions

    options = TextOptions(
        query=which.query, layer=which.layer, head=which.head or "all", tokens=flags.tokens, special=flags.special
    )
    if out is not None:
        check_writable(out)
    result = run(text, model=model, options=options)
    path = None if out is None else result.save(out)
    if as_json:
        print_json(result.to_dict() | ({} if path is None else {"file": str(path)}))
        return
    typer.echo(result.text())
    if path is not None:
        typer.echo(path)
