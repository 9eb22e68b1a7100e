"""``saccade finetune``: supervised training of a network, or of slide heads on a hierarchy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.interruptions import Interruptions
from saccade.cli.options import (
    AllowOverlap,
    Data,
    Json,
    LabelFlags,
    NewRun,
    SettingsFlags,
    TrainingFlags,
    option_values,
    refuse,
    split_floats,
    split_words,
)
from saccade.cli.progress import ProgressBar, print_json
from saccade.cli.settings import merge_settings
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.hierarchy.evaluate_slides import HeadOptions

SLIDE_OPTIONS = (
    "--heads, --unfrozen, --folds, --fractions, --repeats, --seed, --labels, --label, --group, --allow-overlap"
)
SLIDE_SETTINGS = (
    "data.manifest",
    "data.label",
    "data.group",
    "data.mpp",
    "data.tile_px",
    "data.tissue",
    "data.slide_mpp",
    "data.skip_unknown_mpp",
    "data.keep_na",
    "train.seed",
)


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """How a single network is trained."""

    augment: Annotated[
        str | None,
        typer.Option("--augment", help="none, weak (crops, flips; default) or strong (also color, blur, rotation)."),
    ] = None
    frozen: Annotated[bool, typer.Option("--frozen", help="Train only the classifier.")] = False
    layer_decay: Annotated[
        float | None,
        typer.Option("--layer-decay", help="Learning-rate decay per layer (default 0.75 for pretrained transformers)."),
    ] = None
    validation: Annotated[
        float | None,
        typer.Option("--validation", help="Fraction of the groups used for early stopping (default 0.2); 0: none."),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Evaluations without improvement before training stops (default 5)."),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Augmentation recipe: which flips and rotations keep the label."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False

    def settings(self) -> dict[str, object]:
        return {
            "optim.layer_decay": self.layer_decay,
            "data.validation": self.validation,
            "train.patience": self.patience,
            "supervised.frozen": self.frozen or None,
        }


@dataclasses.dataclass(frozen=True)
class HeadFlags:
    """How slide heads on a hierarchy are trained."""

    heads: Annotated[
        str | None, typer.Option("--heads", help="Hierarchies: abmil, transformer (default: both, abmil,transformer).")
    ] = None
    unfrozen: Annotated[
        bool, typer.Option("--unfrozen", help="Hierarchies: also fine-tune the region level with each head; slow.")
    ] = False
    folds: Annotated[
        int | None, typer.Option("--folds", help="Hierarchies: outer folds of the cross-validation (default 5).")
    ] = None
    fractions: Annotated[
        str | None, typer.Option("--fractions", help="Hierarchies: label fractions (default 1,0.25).")
    ] = None
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Hierarchies: draws per label fraction below 1 (default 3).")
    ] = None

    def options(self, *, allow_overlap: bool, seed: int) -> HeadOptions:
        from saccade.evaluation.nested_cv import NestedConfig
        from saccade.hierarchy.evaluate_slides import HeadOptions

        defaults = NestedConfig()
        nested = NestedConfig(
            folds=defaults.folds if self.folds is None else self.folds,
            repeats=defaults.repeats if self.repeats is None else self.repeats,
            fractions=defaults.fractions if self.fractions is None else split_floats("--fractions", self.fractions),
            seed=seed,
        )
        heads = HeadOptions().heads if self.heads is None else split_words(self.heads)
        return HeadOptions(heads=heads, nested=nested, allow_overlap=allow_overlap, unfrozen=self.unfrozen)


def finetune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Starting point: a run, a weights file, or random:NAME.")
    ],
    data: Data,
    out: NewRun,
    network: NetworkFlags,
    training: TrainingFlags,
    labels: LabelFlags,
    heads: HeadFlags,
    flags: SettingsFlags,
    allow_overlap: AllowOverlap = False,
    as_json: Json = False,
) -> None:
    """Train with labels, stop early on a grouped validation split, and measure on the test split.

    On a hierarchy (pretrain --backbone hipt), slide heads are trained by nested cross-validation grouped by patient.
    Pretrained levels stay frozen; --unfrozen adds one row per head with the region level fine-tuned.
    """
    from saccade.hierarchy.settings import is_hierarchy

    if is_hierarchy(model):
        of_length = {f"--{name}": value for name, value in vars(training).items() if name != "seed"}
        refuse(option_values(network) | of_length, "on the heads of a hierarchy", expected=SLIDE_OPTIONS)
        settings = _slide_settings(flags, labels.settings() | {"train.seed": training.seed})
        _finetune_slides(
            model, data, out, heads.options(allow_overlap=allow_overlap, seed=_seed(settings)), settings, as_json
        )
        return
    refuse(option_values(heads), "on a single network, only on a hierarchy")
    _finetune_network(model, data, out, network, training.settings() | labels.settings(), flags, allow_overlap, as_json)


def _finetune_network(
    model: str,
    data: str,
    out: Path,
    network: NetworkFlags,
    options: dict[str, object],
    flags: SettingsFlags,
    allow_overlap: bool,
    as_json: bool,
) -> None:
    from saccade import api
    from saccade.tasks.finetune import FinetuneOptions, read_report

    drop = ["data.source", "train.method", "model.backbone", "model.weights", "model.slices"]
    if network.augment is not None or network.recipe is not None:
        drop += ["views.", "data.grey"]
    settings = merge_settings(flags, network.settings() | options, drop)
    finetuning = FinetuneOptions(
        network.augment or "weak", network.frozen, network.recipe or "microscopy", allow_overlap
    )
    with Interruptions() as interruptions, ProgressBar() as bar:
        if network.resume:
            api.resume(out, console=bar)
            report = read_report(out)
        else:
            report = api.finetune(model, data, out=out, options=finetuning, settings=settings, console=bar)
    if as_json:
        print_json({} if report is None else report.to_dict())
    else:
        typer.echo(f"{'' if report is None else report.text()}\n{out / 'report.html'}")
    interruptions.check()


def _slide_settings(flags: SettingsFlags, options: dict[str, object]) -> dict[str, Any]:
    """Settings of the slides and the seed. Raises UsageError for any other setting."""
    full_names = {key.partition(".")[2]: key for key in SLIDE_SETTINGS}
    settings = {full_names.get(key, key): value for key, value in merge_settings(flags, options).items()}
    refuse(
        {key: value for key, value in settings.items() if key not in SLIDE_SETTINGS},
        "on the heads of a hierarchy",
        expected=", ".join(SLIDE_SETTINGS),
    )
    return settings


def _seed(settings: dict[str, Any]) -> int:
    try:
        return int(settings.pop("train.seed", 0))
    except ValueError:
        raise UsageError("train.seed must be an integer") from None


def _finetune_slides(
    model: str, data: str, out: Path, options: HeadOptions, settings: dict[str, Any], as_json: bool
) -> None:
    from saccade import api
    from saccade.hierarchy.evaluate_slides import to_text

    with ProgressBar() as bar:
        report = api.finetune_slides(model, data, out=out, options=options, settings=settings, console=bar)
    print_json(report.to_dict()) if as_json else typer.echo(f"{to_text(report)}\n{out / 'report.html'}")
