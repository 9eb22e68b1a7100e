"""Commands that show: show, attend, search, report, view, doctor. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.base.files import check_writable
from saccade.cli.options import Bar, Data, Group, Json, MaxBad, Model, Mpp, SlideMpp, Tile, Tissue, print_json
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.attention.options import AttendOptions
    from saccade.models.text_tokens import TextOptions


def show(
    data: Data,
    group: Group = None,
    max_bad: MaxBad = 0.05,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) here.")] = None,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    as_json: Json = False,
) -> None:
    """What is in there: counts, sizes, bit depth, labels, groups, damaged or duplicate files; slides: tissue, tiles."""
    from saccade.api import show as run
    from saccade.data.audit.images import Audit, render
    from saccade.data.slides.tiling import Tiling

    found = run(data, group=group, max_bad=max_bad, sheet=sheet, tiling=Tiling(mpp, tile, tissue, slide_mpp))
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(render(found) if isinstance(found, Audit) else found.text())


def attend(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As elsewhere; with --text a transformers folder.")
    ] = None,
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="One image, or one volume.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="A sentence instead of an image.")] = None,
    query: Annotated[
        str | None,
        typer.Option(help="cls (the default), Y,X in pixels, z,y,x in voxels; of a sentence a word or its number."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer, counted from 0; -1 (and the default) is the last.")] = None,
    head: Annotated[str, typer.Option(help="all, mean, or the number of a head.")] = "all",
    rollout: Annotated[bool, typer.Option("--rollout", help="Attention through all layers up to the last.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Shorter side the image is shown at; default: the model's own.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Also keep the patches with this share of the mass.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="True mask; prints the Jaccard index.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Of a sentence: its tokens instead of whole words.")] = False,
    special: Annotated[
        bool, typer.Option("--special", help="Of a sentence: also draw [CLS] and [SEP]; their share is always said.")
    ] = False,
    level: Annotated[
        str | None,
        typer.Option(help="Of a slide: tile (likeness) or patch (attention); of a hierarchy also region or composed."),
    ] = None,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    max_bad: Annotated[
        float | None, typer.Option("--max-bad", help="Of a slide: share of its tiles that may be unreadable; 0.05.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG, SVG, CSV; volume: also .nii.gz; sentence: HTML; slide: TIF, GEOJSON, folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Where does this patch, or this word, look? Exact attention of any query, layer and head, on the model as trained.

    Of an image, or a volume: saccade attend MODEL IMAGE. Of a sentence: saccade attend [MODEL] --text "..." (without
    MODEL the built-in all-MiniLM-L6-v2), printed, and drawn into --out. Of a slide: a heatmap as PNG, TIFF and GeoJSON
    for QuPath, with the highest and lowest tiles; --query Y,X in pixels of its full resolution.
    """
    cut = {"--mpp": mpp, "--tile": tile, "--tissue": tissue, "--slide-mpp": slide_mpp}
    if image is not None and text is None and _is_slide(image, cut):
        own = {"--size": size, "--threshold": threshold, "--mask": mask, "--rollout": rollout or None}
        own |= {"--tokens": tokens or None, "--special": special or None}
        _refuse("a slide", own | {"--head": None if head == "all" else head})
        if model is not None and _is_hierarchy(model):
            as_trained = {"--query": query, "--layer": layer, "--mpp": mpp, "--tile": tile, "--tissue": tissue}
            _refuse("a hierarchy", as_trained)
            _attend_hierarchy(model, image, {"level": level, "slide_mpp": slide_mpp, "max_bad": max_bad}, out, as_json)
            return
        about_it = {"query": query, "level": level, "layer": layer, "max_bad": max_bad}
        _attend_slide(model, image, about_it, tuple(cut.values()), out, as_json)
        return
    if image is not None and text is None:
        _refuse_many(image, cut)
    _refuse("images and sentences", {"--level": level, "--max-bad": max_bad, **cut})
    if text is not None:
        from saccade.models.text_tokens import TextOptions

        alone = {"IMAGE": image, "--size": size, "--threshold": threshold, "--mask": mask, "--rollout": rollout or None}
        _refuse("--text", alone)
        options = TextOptions(query=query, layer=layer, head=head, tokens=tokens, special=special)
        _attend_text(model, text, options, out, as_json)
        return
    _refuse("an image", {"--tokens": tokens or None, "--special": special or None})
    if model is None or image is None:
        raise UsageError("nothing to look at", expected='saccade attend MODEL IMAGE, or saccade attend --text "..."')
    from saccade.attention.options import AttendOptions

    asked = AttendOptions(
        query=query or "cls", layer=layer, head=head, rollout=rollout, size_px=size, threshold=threshold, mask=mask
    )
    _attend_image(model, image, asked, out, as_json)


def _attend_image(model: str, image: Path, options: AttendOptions, out: Path | None, as_json: bool) -> None:
    from saccade.api import attend as run

    place = out or Path(f"{Path(image.name.removesuffix('.gz')).stem}-attention.png")
    check_writable(place)
    found = run(model, image, options=options)
    path = found.save(place)
    print_json(found.to_dict() | {"file": str(path)}) if as_json else typer.echo(f"{found.text()}\n{path}")


def _is_slide(image: Path, cut: Mapping[str, object]) -> bool:
    from saccade.data.slides.detect import is_slide

    return is_slide(image, asked=any(value is not None for value in cut.values()))


def _refuse_many(image: Path, cut: Mapping[str, object]) -> None:
    """Raise UsageError for a table, and for a folder of slides, where one slide or image is asked for."""
    from saccade.data.formats import has_suffix
    from saccade.data.slides.detect import holds_slides

    hint = "name one file; of a slide that does not say its resolution, give it with --slide-mpp"
    if image.is_file() and has_suffix(image.name, "table"):
        raise UsageError(f"attend looks at one slide or image, and {image} is a table", hint=hint)
    if image.is_dir() and holds_slides(image, asked=any(value is not None for value in cut.values())):
        raise UsageError(f"attend looks at one slide, and {image} is a folder of slides", hint=hint)


def _attend_slide(
    model: str | None, slide: Path, asked: dict[str, Any], cut: tuple[Any, ...], out: Path | None, as_json: bool
) -> None:
    from saccade.api import attend_slide as run
    from saccade.attention.slide import LEVELS, SlideOptions, check_form
    from saccade.data.slides.tiling import Tiling
    from saccade.errors import unknown

    place = out or Path(f"{slide.stem}-attention")
    check_form(place)
    check_writable(place)
    if model is None:
        raise UsageError("nothing to look with", expected="saccade attend MODEL SLIDE")
    if asked["level"] not in (None, *LEVELS):
        raise unknown("level", asked["level"], LEVELS)
    named = {key: value for key, value in asked.items() if value is not None}
    with Bar() as bar:
        found = run(model, slide, options=SlideOptions(**named, tiling=Tiling(*cut)), console=bar)
        files = found.save(place)
    if as_json:
        print_json(found.to_dict() | {"files": [str(file) for file in files]})
        return
    typer.echo("\n".join([found.text(), *map(str, files)]))


def _is_hierarchy(model: str) -> bool:
    from saccade.hierarchy.settings import is_hierarchy

    return is_hierarchy(model) or (Path(model) / "head" / "head.json").is_file()


def _attend_hierarchy(model: str, slide: Path, asked: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from saccade.api import attend_hierarchy as run
    from saccade.attention.slide import check_form

    place, files = out or Path(f"{slide.stem}-attention"), []
    check_form(place)
    check_writable(place)
    if asked["level"] is None and place.suffix:
        raise UsageError("the maps of all levels do not go into one file", got=place, hint="a folder, or one --level")
    with Bar() as bar:
        maps = run(model, slide, **{key: value for key, value in asked.items() if value is not None}, console=bar)
        for found in maps:
            files += found.save(place / found.options.level if len(maps) > 1 else place)
    if as_json:
        print_json([found.to_dict() for found in maps] + [{"files": [str(file) for file in files]}])
        return
    typer.echo("\n".join([*(found.text() for found in maps), *map(str, files)]))


def _refuse(what: str, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} cannot go with {what}")


def _attend_text(model: str | None, text: str, options: TextOptions, out: Path | None, as_json: bool) -> None:
    from saccade.api import attend_text as run

    if out is not None:
        check_writable(out)
    found = run(text, model=model, options=options)
    path = None if out is None else found.save(out)
    if as_json:
        print_json(found.to_dict() | ({} if path is None else {"file": str(path)}))
        return
    typer.echo(found.text())
    if path is not None:
        typer.echo(path)


def search(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="One image file; for a hierarchy one slide.")],
    store: Annotated[str, typer.Option("--in", help="Feature table of saccade embed, by the same model.")] = ...,  # type: ignore[assignment]
    k: Annotated[int, typer.Option(help="Neighbours.")] = 10,
    where: Annotated[str, typer.Option(help="Only these: label=a,b split=train group!=7 'other column'=x.")] = "",
    approximate: Annotated[
        bool | None,
        typer.Option("--approximate/--exact", help="Use the index of a LanceDB table; default: above a million rows."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Where the images lie now, if they have moved.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Contact sheet of the hits (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """The images of a feature table that are most like this one, and the label they vote for."""
    from saccade import api
    from saccade.tasks.search import SearchOptions

    options = SearchOptions(k=k, where=where, approximate=approximate, data=data)
    if out is not None:
        check_writable(out)
    with Bar() as bar:
        found = api.search(model, image, store=store, options=options, console=bar)
    faults = found.save_sheet(out) if out else []
    print_json(found.to_dict() | {"sheet": str(out) if out else None}) if as_json else typer.echo(found.text())
    for fault in faults:
        typer.echo(fault, err=True)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, of a study, or of heads for slides.")],
    interactive: Annotated[
        Path | None, typer.Option("--interactive", metavar="FILE.html", help="Write the explorer as one file instead.")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Its images, with commas; default: a few of the run's, one a class.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Their shorter side in pixels; default: the model's own.")] = None,
) -> None:
    """Write the page again, also while the run or study goes on: one file, no network needed to read it.

    With --interactive, the attention explorer for chosen images as one file that works without a server: every patch,
    layer and head, beside the same network with random weights. For supplements of papers and for lectures.
    """
    if interactive is not None:
        from saccade.api import report_interactive

        files = [name.strip() for name in (images or "").split(",") if name.strip()]
        path, note = report_interactive(run, interactive, images=files, size_px=size)
        typer.echo(f"{note}\n{path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return
    _refuse("a report without --interactive", {"--images": images, "--size": size})
    if (run / "study.yaml").exists():
        from saccade.study.runner import page_so_far

        typer.echo(page_so_far(run))
        return
    from saccade.reporting.write import write_report

    typer.echo(write_report(run))


def view(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN ...]", help="Runs or other MODELs; without one, all runs found below here."),
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option("--store", help="A feature table for the map, beside RUN/features.parquet.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; 8420 or a free one unless given.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Look at runs in a local page: attention of any patch, layer and head, live curves, tables."""
    from saccade.errors import require

    require("fastapi", "web", "saccade view")
    require("uvicorn", "web", "saccade view")
    from saccade.web.start import view as run

    run(runs or [], stores=store or [], host=host, port=port, open_browser=not no_open, say=typer.echo)


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run; without one, this machine.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Do a step again that was left out.")] = False,
    as_json: Json = False,
) -> None:
    """What is wrong with a run: its illness, the figures, the likely cause, the change to make.

    Without RUN, what saccade finds on this machine: versions, devices, precision, optional packages.
    """
    from saccade import api

    if run is not None and replay:
        from saccade.train.replay import to_text

        again = api.replay(run)
        print_json(again) if as_json else typer.echo(to_text(again))
        return
    if run is not None:
        illnesses = api.examine(run)
        if as_json:
            print_json([vars(one) for one in illnesses])
        else:
            typer.echo("\n\n".join(one.text() for one in illnesses) or f"{run}: nothing wrong in its logged figures")
        return
    found = api.doctor()
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_yes(v)}" for k, v in value.items())
        typer.echo(f"{key:14s} {_yes(value)}")


def _yes(value: object) -> object:
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
