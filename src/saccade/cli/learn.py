"""Commands that train: quickstart, pretrain, finetune, compare. Heavy imports happen inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import (
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

if TYPE_CHECKING:
    from saccade.hierarchy.evaluate_slides import HeadOptions


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
    from saccade.quickstart import quickstart as run

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
    context: typer.Context,
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
    from saccade import api
    from saccade.base import run_folder
    from saccade.hierarchy.settings import is_hierarchy
    from saccade.tasks.finetune import FinetuneOptions, to_text

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
    if is_hierarchy(model):
        _without_effect(_typed(context, OF_IMAGES), "on the heads of a hierarchy", OF_SLIDES)
        own = {key: value for key, value in given.items() if key in SLIDE_SETTINGS and value is not None}
        asked = _heads_asked(heads, folds, fractions, repeats, unfrozen, allow_overlap)
        _finetune_slides(model, data, out, asked, own | _of_slides(set_), as_json)
        return
    _without_effect(_typed(context, OF_HEADS), "on a single network, only on a hierarchy")
    named = given_settings(given, set_)
    options = FinetuneOptions(augment, frozen, recipe, allow_overlap)
    with Bar() as bar:
        if resume:
            api.resume(out, console=bar)
            found = run_folder.read_json(out / "classifier.json")
        else:
            found = api.finetune(model, data, out=out, options=options, settings=named, console=bar)
    print_json(found) if as_json else typer.echo(f"{to_text(found)}\n{out / 'report.html'}")


LEARNING = ("augment", "frozen", "layer_decay", "validation", "patience", "epochs", "steps", "minutes", "batch")
OF_IMAGES = (*LEARNING, "size", "recipe", "resume")
OF_HEADS = ("heads", "unfrozen", "folds", "fractions", "repeats")
OF_SLIDES = "--heads, --unfrozen, --folds, --fractions, --repeats, --seed, --labels, --label, --group, --allow-overlap"
CUTTING = ("data.mpp", "data.tile_px", "data.tissue", "data.slide_mpp")
SLIDE_SETTINGS = ("data.manifest", "data.label", "data.group", *CUTTING, "train.seed")


def _typed(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Which of these options stand on the command line, as they are written there."""
    known = [part for part in context.command.params if part.name in names]
    sources = [context.get_parameter_source(str(part.name)) for part in known]
    return [part.opts[0] for part, source in zip(known, sources) if source is not None and source.name == "COMMANDLINE"]


def _without_effect(options: list[str], where: str, instead: str | None = None) -> None:
    from saccade.errors import UsageError

    if options:
        have, them = ("has", "it") if len(options) == 1 else ("have", "them")
        raise UsageError(f"{', '.join(options)} {have} no effect {where}", expected=instead, hint=f"leave {them} out")


def _of_slides(pairs: Sequence[str] | None) -> dict[str, Any]:
    """What --set says of slides; a name without its section is one of these too. UsageError for any other."""
    from saccade.base.config import split_pair

    whole = {key.partition(".")[2]: key for key in SLIDE_SETTINGS}
    found = {whole.get(key, key): value for key, value in map(split_pair, pairs or [])}
    strange = [f"--set {key}" for key in found if key not in SLIDE_SETTINGS]
    _without_effect(strange, "on the heads of a hierarchy", ", ".join(SLIDE_SETTINGS))
    return found


def _heads_asked(
    heads: str | None,
    folds: int | None,
    fractions: str | None,
    repeats: int | None,
    unfrozen: bool,
    allow_overlap: bool,
) -> HeadOptions:
    from saccade.evaluation.nested_cv import NestedConfig
    from saccade.hierarchy.evaluate_slides import HeadOptions

    usual = NestedConfig()
    nested = NestedConfig(
        folds=usual.folds if folds is None else folds,
        repeats=usual.repeats if repeats is None else repeats,
        fractions=usual.fractions if fractions is None else _fractions(fractions),
    )
    kinds = HeadOptions().heads if heads is None else _words(heads)
    return HeadOptions(heads=kinds, nested=nested, allow_overlap=allow_overlap, unfrozen=unfrozen)


def _finetune_slides(
    model: str, data: str, out: Path, options: HeadOptions, settings: dict[str, Any], as_json: bool
) -> None:
    """Heads over slides. ``settings``: the seed, and what names and cuts the slides."""
    from saccade import api
    from saccade.errors import UsageError
    from saccade.hierarchy.evaluate_slides import to_text

    try:
        seed = int(settings.pop("train.seed", 0))
    except ValueError:
        raise UsageError("train.seed is a whole number") from None
    nested = dataclasses.replace(options.nested, seed=seed)
    options = dataclasses.replace(options, nested=nested)
    with Bar() as bar:
        found = api.finetune_slides(model, data, out=out, options=options, settings=settings, console=bar)
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
    from saccade.study.design import StudyConfig

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
