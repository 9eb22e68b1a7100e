"""The command line: thin, with the same words as the Python functions. Heavy imports happen inside commands.

Data go to stdout, progress and messages to stderr; exit code 0 is success, 1 a failure, 2 a wrong call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.errors import SaccadeError
from saccade.methods.names import METHODS
from saccade.terminal import Bar, Data, Grey, Group, Json, Label, Labels, MaxBad, Model, Set, first_process, print_json

app = typer.Typer(
    name="saccade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learn from unlabelled biomedical images, measure it with few labels, see where it looks.\n\n"
    "Start with: saccade quickstart",
    epilog="DATA: a folder, .zip, .tar[.gz|.xz], .npz, a manifest CSV or Parquet, or synthetic:tissue. "
    "MODEL: a run folder, a weights file, random:NAME or timm:NAME.",
)


@app.command()
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


@app.command()
def show(
    data: Data,
    group: Group = None,
    max_bad: MaxBad = 0.05,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) here.")] = None,
    as_json: Json = False,
) -> None:
    """What is in there: counts, sizes, bit depth, labels, groups, damaged or duplicate files."""
    from saccade.api import show as run
    from saccade.data.audit import render

    found = run(data, group=group, max_bad=max_bad, sheet=sheet)
    print_json(found.to_dict()) if as_json else typer.echo(render(found))


@app.command(epilog="\b\nMethods:\n" + "\n".join(f"  {name:10s} {text}" for name, text in METHODS.items()))
def pretrain(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Images to learn from, labels unused.")] = None,
    out: Annotated[Path, typer.Option("--out", help="New folder for the run.")] = ...,  # type: ignore[assignment]
    method: Annotated[str, typer.Option(help="How to learn, see below.")] = "dino",
    backbone: Annotated[
        str | None, typer.Option(help="vit_{micro,tiny,small,base}_patchP[_conv], resnet10|18|50.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the network's input in pixels.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Length by the clock, turned into steps at the start.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a micro-batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run; 0 unless given.")] = None,
    recipe: Annotated[
        str, typer.Option(help="microscopy, stain, grey, natural, xray or short; several with commas: grey,short.")
    ] = "microscopy",
    weights: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from this model.")] = None,
    on_collapse: Annotated[
        str | None,
        typer.Option(help="When nothing is learned any more: warn, stop, or repair (go back, change, go on)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    set_: Set = None,
    group: Group = None,
    max_bad: Annotated[
        float | None, typer.Option("--max-bad", help="Stop when a larger fraction is damaged; 0.05 unless given.")
    ] = None,
) -> None:
    """Learn from images without labels. Settings left open are decided from the data and printed."""
    from saccade import api
    from saccade.errors import UsageError

    with Bar() as bar:
        from saccade.config import split_pair

        named: dict[str, Any] = dict(split_pair(pair) for pair in set_ or [])
        given = {
            "model.size_px": size,
            "model.weights": weights,
            "train.on_collapse": on_collapse,
            "train.epochs": epochs,
            "train.steps": steps,
            "train.minutes": minutes,
            "train.batch": batch,
            "train.seed": seed,
            "data.group": group,
            "data.max_bad": max_bad,
        }
        named = {key: value for key, value in given.items() if value is not None} | named
        if resume:
            if backbone is not None:
                named["model.backbone"] = backbone
            folder = api.resume(out, data=data, settings=named, console=bar)
        elif data is None:
            raise UsageError("pretrain needs DATA", hint="saccade pretrain FOLDER --out RUN")
        else:
            folder = api.pretrain(
                data, out=out, method=method, backbone=backbone, recipe=recipe, settings=named, console=bar
            )
    if first_process():
        typer.echo(f"{folder}\nnext: saccade evaluate {folder} DATA")


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Where to start: a run, a file, or random:NAME.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="New folder for the run.")] = ...,  # type: ignore[assignment]
    augment: Annotated[
        str, typer.Option(help="none, weak (crops, flips) or strong (colour, blur, rotation).")
    ] = "weak",
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the classifier only.")] = False,
    layer_decay: Annotated[
        float | None, typer.Option(help="Slower learning in earlier layers; 0.75 for pretrained transformers.")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the groups kept apart to stop early by; 0: none.")] = 0.2,
    patience: Annotated[int, typer.Option(help="Evaluations without a better validation before it stops.")] = 5,
    size: Annotated[int | None, typer.Option(help="Side of the network's input in pixels.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images, at most.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, at most.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Length by the clock, turned into steps at the start.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a micro-batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run; 0 unless given.")] = None,
    recipe: Annotated[str, typer.Option(help="As in pretrain: which flips and turns mean nothing.")] = "microscopy",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on although MODEL has seen test images; figures are marked.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train with labels, stop early on a grouped validation part, measure on the test part."""
    from saccade import api, runs
    from saccade.config import split_pair
    from saccade.finetuning import FinetuneOptions, to_text

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
    named = {key: value for key, value in given.items() if value is not None}
    named |= dict(split_pair(pair) for pair in set_ or [])
    options = FinetuneOptions(augment, frozen, recipe, allow_overlap)
    with Bar() as bar:
        if resume:
            api.resume(out, console=bar)
            found = runs.read_json(out / "classifier.json")
        else:
            found = api.finetune(model, data, out=out, options=options, settings=named, console=bar)
    print_json(found) if as_json else typer.echo(f"{to_text(found)}\n{out / 'report.html'}")


@app.command()
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


def _numbers(text: str) -> tuple[int, ...]:
    from saccade.errors import UsageError

    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise UsageError("--sizes takes whole numbers", got=text, expected="for example 100,300,1000") from None


@app.command()
def embed(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Feature table to write (Parquet).")] = ...,  # type: ignore[assignment]
    grey: Grey = False,
    max_bad: MaxBad = 0.05,
) -> None:
    """One feature vector an image, in a Parquet table."""
    from saccade.api import embed as run

    table = run(model, data, out=out, grey=grey, max_bad=max_bad)
    typer.echo(f"{out}: {table.features.shape[0]:,} images, {table.features.shape[1]} features")


@app.command()
def evaluate(
    models_and_data: Annotated[list[str], typer.Argument(metavar="MODEL... DATA", help="Models, then the images.")],
    labels: Labels = None,
    label: Label = None,
    group: Group = None,
    fractions: Annotated[str, typer.Option(help="Fractions of the labels to use.")] = "1,0.1,0.01",
    repeats: Annotated[int, typer.Option(help="Draws at each fraction below 1.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for evaluation.json, .csv, .md.")] = None,
    grey: Grey = False,
    baselines: Annotated[bool, typer.Option(help="Random weights, raw pixels, colour histogram.")] = True,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", help="Measure although test images were seen; every number is marked."),
    ] = False,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
) -> None:
    """k-NN and logistic regression at 100, 10 and 1 % of the labels, with intervals and baselines."""
    from saccade import api
    from saccade.errors import UsageError
    from saccade.evaluation.protocol import ProtocolConfig
    from saccade.evaluation.tables import to_text

    if len(models_and_data) < 2:
        raise UsageError("evaluate takes one or more MODELs and then DATA", got=" ".join(models_and_data))
    *models, data = models_and_data
    try:
        parts = tuple(float(word) for word in fractions.split(","))
    except ValueError:
        raise UsageError("--fractions takes numbers", got=fractions, expected="for example 1,0.1,0.01") from None
    options = api.EvaluateOptions(
        labels=labels,
        label=label,
        group=group,
        grey=grey,
        baselines=baselines,
        allow_overlap=allow_overlap,
        max_bad=max_bad,
        protocol=ProtocolConfig(fractions=parts, repeats=repeats, seed=seed),
    )
    with Bar() as bar:
        found = api.evaluate(models, data, options=options, out=out, console=bar)
    print_json(found.to_dict()) if as_json else typer.echo(to_text(found))


@app.command()
def attend(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="One image file.")],
    query: Annotated[str, typer.Option(help="cls, or Y,X in pixels of the image.")] = "cls",
    layer: Annotated[int | None, typer.Option(help="Layer, counted from 0; -1 (and the default) is the last.")] = None,
    head: Annotated[str, typer.Option(help="all, mean, or the number of a head.")] = "all",
    rollout: Annotated[bool, typer.Option("--rollout", help="Attention through all layers up to the last.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Shorter side the image is shown at; default: the model's own.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Also keep the patches with this share of the mass.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="True mask; prints the Jaccard index.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG, SVG or CSV.")] = None,
    as_json: Json = False,
) -> None:
    """Where does this patch look? Exact attention of any query, layer and head, on the model as trained."""
    from saccade.api import attend as run
    from saccade.panels import AttendOptions

    options = AttendOptions(
        query=query, layer=layer, head=head, rollout=rollout, size_px=size, threshold=threshold, mask=mask
    )
    found = run(model, image, options=options)
    path = found.save(out or Path(f"{image.stem}-attention.png"))
    print_json(found.to_dict() | {"file": str(path)}) if as_json else typer.echo(f"{found.text()}\n{path}")


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of a study.")]) -> None:
    """Write the page again, also while the run or study goes on: one file, no network needed to read it."""
    if (run / "study.yaml").exists():
        from saccade.study.drive import page_so_far

        typer.echo(page_so_far(run))
        return
    from saccade.reporting.build import write_report
    from saccade.runs import require_run

    require_run(run)
    typer.echo(write_report(run))


@app.command()
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


def main() -> None:
    """Entry point: errors a person can act on are printed without a traceback."""
    try:
        app()
    except SaccadeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
