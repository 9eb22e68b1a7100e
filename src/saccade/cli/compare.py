"""``saccade compare``: learning curves of several backbones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import (
    AllowOverlap,
    Grey,
    KeepNa,
    LabelFlags,
    OptionalData,
    SettingsFlags,
    split_integers,
    split_words,
)
from saccade.cli.progress import ProgressBar
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.study.design import StudyConfig


@dataclasses.dataclass(frozen=True)
class BudgetFlags:
    """What every training of the study has in common."""

    steps: Annotated[
        int | None, typer.Option("--steps", help="Budget of each training in optimizer steps (default 300).")
    ] = None
    flops: Annotated[
        float | None, typer.Option("--flops", help="Budget in floating-point operations instead, e.g. 2e13.")
    ] = None
    size: Annotated[int | None, typer.Option("--size", help="Input size in pixels (default 64).")] = None
    batch: Annotated[int | None, typer.Option("--batch", help="Images per step (default 64).")] = None
    augment: Annotated[str | None, typer.Option("--augment", help="weak (default) or strong.")] = None
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Augmentation recipe: which flips and rotations keep the label.")
    ] = None
    test_limit: Annotated[
        int | None,
        typer.Option("--test-limit", help="Largest number of test images, stratified by class (default 2000); 0: all."),
    ] = None


def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; an existing study is continued.")],
    budget: BudgetFlags,
    labels: LabelFlags,
    flags: SettingsFlags,
    data: OptionalData = None,
    backbones: Annotated[
        str, typer.Option("--backbones", help="Two or more backbones, separated by commas.")
    ] = "resnet18,resnet18_c4,vit_tiny_patch8",
    sizes: Annotated[
        str, typer.Option("--sizes", help="Numbers of training images, separated by commas.")
    ] = "100,300,1000",
    regimes: Annotated[
        str, typer.Option("--regimes", help="Training regimes: any of supervised, augmented, dino.")
    ] = "supervised,augmented,dino",
    seeds: Annotated[int, typer.Option("--seeds", help="Draws of each training-set size.")] = 3,
    match: Annotated[
        str,
        typer.Option("--match", help="params or flops: scale every backbone's width to the first one's value."),
    ] = "",
    keep_na: KeepNa = False,
    grey: Grey = False,
    workers: Annotated[int, typer.Option("--workers", help="Trials that run in parallel.")] = 1,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Compare backbones: learning curves over training-set size, with their cost and robustness.

    --config takes the study.yaml of another study.
    """
    from saccade import api

    options = {name: value for name, value in vars(budget).items() if value is not None}
    options |= {"grey": True} if grey else {}
    options |= {"keep_na": True} if keep_na else {}
    options |= {"allow_overlap": True} if allow_overlap else {}
    if labels.labels is not None:
        options["manifest"] = str(labels.labels.resolve())
    options |= {name: value for name, value in (("label", labels.label), ("group", labels.group)) if value is not None}
    study = _study(flags, options)
    source = data or study.data
    if not source:
        raise UsageError("compare needs DATA", hint="saccade compare FOLDER --out DIR")
    compare_options = api.CompareOptions(split_words(regimes), seeds, match, workers, study)
    with ProgressBar() as bar:
        page = api.compare(
            source,
            out=out,
            backbones=split_words(backbones),
            sizes=split_integers("--sizes", sizes),
            options=compare_options,
            console=bar,
        )
    typer.echo(page)


def _study(flags: SettingsFlags, options: dict[str, Any]) -> StudyConfig:
    """The study of --config (default: StudyConfig), changed by the explicit options and --set."""
    from saccade.base import config
    from saccade.study.design import StudyConfig

    study = StudyConfig()
    if flags.config is not None:
        from saccade.cli.settings import read_config

        study = config.override_section("study", study, read_config(flags.config))
    if "size" in options:
        options["size_px"] = options.pop("size")
    if "steps" in options or "flops" in options:
        options = {"steps": 0, "flops": 0.0} | options
    if "recipe" in options:
        options["dino_recipe"] = f"{options['recipe']},short"
    return dataclasses.replace(study, **options, settings=(*study.settings, *(flags.set_ or ())))
