"""Commands that train: quickstart, pretrain, finetune, compare. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.terminal import (
    Bar,
    Batch,
    Data,
    Grey,
    Group,
    Json,
    Label,
    Labels,
    Minutes,
    Mpp,
    NewRun,
    Resume,
    Seed,
    Set,
    Size,
    SlideMpp,
    Tile,
    Tissue,
    first_process,
    given_settings,
    print_json,
)


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="New folder for data, run and report.")] = Path(
        "saccade-quickstart"
    ),
    minutes: Annotated[float, typer.Option("--minutes", help="Time for pretraining; more buys better features.")] = 4.5,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Another network, e.g. vit_micro_patch8 to see a plain ViT."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The main job end to end, on tissue images that saccade draws itself: under 8 minutes on two cores."""
    from saccade.starter import quickstart as run

    with Bar() as bar:
        found = run(out, minutes=minutes, backbone=backbone, console=bar)
    print_json(found.to_dict()) if as_json else typer.echo(found.text())


def pretrain(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Images to learn from, labels unused.")] = None,
    out: NewRun = ...,  # type: ignore[assignment]
    method: Annotated[str, typer.Option(help="How to learn, see below.")] = "dino",
    backbone: Annotated[
        str | None, typer.Option(help="vit_{micro,tiny,small,base}_patchP[_conv], resnet10|18|50; slides: hipt.")
    ] = None,
    size: Size = None,
    size_mm: Annotated[
        float | None,
        typer.Option("--size-mm", help="Side in millimetres of the cube of a volume a view is taken from."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Minutes = None,
    batch: Batch = None,
    seed: Seed = None,
    recipe: Annotated[
        str, typer.Option(help="microscopy, stain, grey, natural, xray or short; several with commas: grey,short.")
    ] = "microscopy",
    weights: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from this model.")] = None,
    on_collapse: Annotated[
        str | None,
        typer.Option(help="When nothing is learned any more: warn, stop, or repair (go back, change, go on)."),
    ] = None,
    resume: Resume = False,
    mpp: Mpp = None,
    tile: Tile = None,
    tissue: Tissue = None,
    slide_mpp: SlideMpp = None,
    set_: Set = None,
    group: Group = None,
    max_bad: Annotated[
        float | None, typer.Option("--max-bad", help="Stop when a larger fraction is damaged; 0.05 unless given.")
    ] = None,
) -> None:
    """Learn from images without labels. Settings left open are decided from the data and printed."""
    from saccade import api
    from saccade.errors import UsageError

    options = {
        "model.size_px": size,
        "data.size_mm": size_mm,
        "model.weights": weights,
        "train.on_collapse": on_collapse,
        "train.epochs": epochs,
        "train.steps": steps,
        "train.minutes": minutes,
        "train.batch": batch,
        "train.seed": seed,
        "data.mpp": mpp,
        "data.tile_px": tile,
        "data.tissue": tissue,
        "data.slide_mpp": slide_mpp,
        "data.group": group,
        "data.max_bad": max_bad,
    }
    named = given_settings(options, set_)
    with Bar() as bar:
        if resume:
            named |= {} if backbone is None else {"model.backbone": backbone}
            folder = api.resume(out, data=data, settings=named, console=bar)
        elif data is None:
            raise UsageError("pretrain needs DATA", hint="saccade pretrain FOLDER --out RUN")
        else:
            folder = api.pretrain(
                data, out=out, method=method, backbone=backbone, recipe=recipe, settings=named, console=bar
            )
    if first_process():
        typer.echo(f"{folder}\nnext: {_next(folder)}")


def _next(run: Path) -> str:
    from saccade.hierarchy.settings import is_hierarchy

    if is_hierarchy(run):
        return f"saccade attend {run} SLIDE --out DIR, or saccade finetune {run} LABELLED --out DIR"
    return f"saccade evaluate {run} DATA"


def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Where to start: a run, a file, or random:NAME.")],
    data: Data,
    out: NewRun = ...,  # type: ignore[assignment]
    augment: Annotated[
        str, typer.Option(help="none, weak (crops, flips) or strong (colour, blur, rotation).")
    ] = "weak",
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the classifier only.")] = False,
    layer_decay: Annotated[
        float | None, typer.Option(help="Slower learning in earlier layers; 0.75 for pretrained transformers.")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the groups kept apart to stop early by; 0: none.")] = 0.2,
    patience: Annotated[int, typer.Option(help="Evaluations without a better validation before it stops.")] = 5,
    size: Size = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images, at most.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, at most.")] = None,
    minutes: Minutes = None,
    batch: Batch = None,
    seed: Seed = None,
    recipe: Annotated[str, typer.Option(help="As in pretrain: which flips and turns mean nothing.")] = "microscopy",
    resume: Resume = False,
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on although MODEL has seen test images; figures are marked.")
    ] = False,
    heads: Annotated[
        str | None, typer.Option(help="Hierarchies: abmil, transformer, or both with a comma (the default).")
    ] = None,
    unfrozen: Annotated[
        bool, typer.Option("--unfrozen", help="Hierarchies: also train the region level on with each head; slow.")
    ] = False,
    folds: Annotated[int | None, typer.Option(help="Hierarchies: outer folds of cross-validation; 5.")] = None,
    fractions: Annotated[str | None, typer.Option(help="Hierarchies: fractions of the labels; 1,0.25.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Hierarchies: draws at each fraction below 1; 3.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train with labels, stop early on a grouped validation part, measure on the test part.

    On a hierarchy (pretrain --backbone hipt) heads are trained over slides, by nested cross-validation with patients
    apart; its levels rest. With --unfrozen the table has each head once more, with the region level trained on.
    """
    from saccade import api, runs
    from saccade.finetuning import FinetuneOptions, to_text
    from saccade.hierarchy.settings import is_hierarchy

    given = {
        "optim.layer_decay": layer_decay,
        "data.validation": validation,
        "train.patience": patience,
        "model.size_px": size,
        "train.epochs": epochs,
        "train.steps": steps,
        "train.minutes": minutes,
        "train.batch": batch,
        "train.seed": seed,
        "data.manifest": None if labels is None else str(labels),
        "data.label": label,
        "data.group": group,
    }
    named = given_settings(given, set_)
    of_slides = {"--heads": heads, "--folds": folds, "--fractions": fractions, "--repeats": repeats}
    of_slides |= {"--unfrozen": unfrozen or None}
    if is_hierarchy(model):
        usual = {"--augment": (augment, "weak"), "--frozen": (frozen, False), "--validation": (validation, 0.2)}
        usual |= {"--patience": (patience, 5), "--recipe": (recipe, "microscopy"), "--resume": (resume, False)}
        _without_effect([option for option, (value, default) in usual.items() if value != default], "on a hierarchy")
        named = {key: value for key, value in named.items() if key not in ("data.validation", "train.patience")}
        _finetune_slides(model, data, out, of_slides, named, allow_overlap, as_json)
        return
    _without_effect([name for name, value in of_slides.items() if value is not None], "on a single network")
    options = FinetuneOptions(augment, frozen, recipe, allow_overlap)
    with Bar() as bar:
        if resume:
            api.resume(out, console=bar)
            found = runs.read_json(out / "classifier.json")
        else:
            found = api.finetune(model, data, out=out, options=options, settings=named, console=bar)
    print_json(found) if as_json else typer.echo(f"{to_text(found)}\n{out / 'report.html'}")


def _without_effect(options: list[str], where: str) -> None:
    from saccade.errors import UsageError

    if options:
        raise UsageError(f"{', '.join(options)} has no effect {where}", hint="leave it out")


def _finetune_slides(
    model: str,
    data: str,
    out: Path,
    asked: dict[str, Any],
    named: dict[str, Any],
    allow_overlap: bool,
    as_json: bool,
) -> None:
    """Heads over slides. ``named`` may hold the seed and the slides' table; anything else has no effect."""
    from saccade import api
    from saccade.evaluation.nested import NestedConfig
    from saccade.hierarchy.slides import to_text

    seed = int(named.pop("train.seed", 0))
    _without_effect([key for key in named if not key.startswith("data.")], "on a hierarchy, whose levels rest")
    given = {"folds": asked["--folds"], "repeats": asked["--repeats"], "seed": seed}
    if asked["--fractions"] is not None:
        given["fractions"] = _fractions(asked["--fractions"])
    config = NestedConfig(**{key: value for key, value in given.items() if value is not None})
    heads = _words(asked["--heads"]) if asked["--heads"] is not None else ("abmil", "transformer")
    unfrozen = bool(asked["--unfrozen"])
    options = api.HeadOptions(heads=heads, nested=config, allow_overlap=allow_overlap, unfrozen=unfrozen)
    with Bar() as bar:
        found = api.finetune_slides(model, data, out=out, options=options, settings=named, console=bar)
    print_json(found) if as_json else typer.echo(f"{to_text(found)}\n{out / 'report.html'}")


def compare(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; one that exists is continued.")] = ...,  # type: ignore[assignment]
    backbones: Annotated[
        str, typer.Option(help="Two or more names, with commas.")
    ] = "resnet18,resnet18_c4,vit_tiny_patch8",
    sizes: Annotated[str, typer.Option(help="Numbers of training images, with commas.")] = "100,300,1000",
    ways: Annotated[str, typer.Option(help="Of supervised, augmented, dino.")] = "supervised,augmented,dino",
    seeds: Annotated[int, typer.Option(help="Draws of each size.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Budget of a training: optimiser steps; 300 unless given.")] = None,
    flops: Annotated[float | None, typer.Option(help="Or its floating-point operations, e.g. 2e13.")] = None,
    match: Annotated[
        str, typer.Option(help="params or flops: bring every backbone to the first one's figure by its width.")
    ] = "",
    size: Annotated[int, typer.Option(help="Side of the input in pixels.")] = 64,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 64,
    augment: Annotated[str, typer.Option(help="weak or strong.")] = "weak",
    recipe: Annotated[str, typer.Option(help="As in pretrain: which flips and turns mean nothing.")] = "microscopy",
    grey: Grey = False,
    test_limit: Annotated[int, typer.Option(help="Most test images, drawn class by class; 0: all.")] = 2000,
    workers: Annotated[int, typer.Option(help="Cells trained side by side.")] = 1,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on although both parts share images; the page says so.")
    ] = False,
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for every training.")
    ] = None,
) -> None:
    """Which inductive bias pays, at which data size, at what cost: learning curves of several backbones."""
    from saccade import api
    from saccade.study.grid import StudyConfig

    study = StudyConfig(
        manifest="" if labels is None else str(labels.resolve()),
        label=label or "",
        group=group or "",
        grey=grey,
        size_px=size,
        batch=batch,
        steps=steps or (0 if flops else 300),
        flops=flops or 0.0,
        augment=augment,
        recipe=recipe,
        dino_recipe=f"{recipe},short",
        test_limit=test_limit,
        allow_overlap=allow_overlap,
        settings=tuple(set_ or ()),
    )
    options = api.CompareOptions(_words(ways), seeds, match, workers, study)
    with Bar() as bar:
        page = api.compare(
            data, out=out, backbones=_words(backbones), sizes=_numbers(sizes), options=options, console=bar
        )
    typer.echo(page)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _fractions(text: str) -> tuple[float, ...]:
    from saccade.errors import UsageError

    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise UsageError("--fractions takes numbers", got=text, expected="for example 1,0.25") from None


def _numbers(text: str) -> tuple[int, ...]:
    from saccade.errors import UsageError

    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise UsageError("--sizes takes whole numbers", got=text, expected="for example 100,300,1000") from None
