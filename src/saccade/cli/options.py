"""Options that mean the same in every command: each is written once, alone or in a group.

A group is a frozen dataclass whose fields are typer options. A command takes the group as one parameter;
``expand_groups`` shows typer the options instead, and hands the command the filled group.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from saccade.data.slides.tiling import Tiling

Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Images: folder, archive, .npz, manifest, slides, volumes, synthetic:tissue."),
]
OptionalData = Annotated[
    str | None, typer.Argument(metavar="DATA", help="As elsewhere; may come from --config instead.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, weights file, random:NAME or timm:NAME.")]
NewRun = Annotated[Path, typer.Option("--out", help="New folder for the run.")]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Grey = Annotated[bool, typer.Option("--grey", help="Convert the images to greyscale.")]
Group = Annotated[str | None, typer.Option("--group", help="Column with the patient, slide or source tile.")]
KeepNa = Annotated[
    bool, typer.Option("--keep-na", help="Classes and groups may be called n/a, NA or nan (default: no value).")
]
MaxBad = Annotated[float, typer.Option("--max-bad", help="Largest fraction of damaged files that is tolerated.")]
AllowOverlap = Annotated[
    bool,
    typer.Option("--allow-overlap", help="Continue although training and test data overlap; all results are marked."),
]
Size = Annotated[int | None, typer.Option("--size", help="Input size of the network in pixels.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Images per micro-batch.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="Pretext task, see below (default: chosen from the data, the device and the time)."),
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", help="vit_{micro,tiny,small,base}_patchP[_conv], resnet10|18|50; for slides also hipt."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Augmentation recipe: microscopy, stain, grey, natural, xray, short; combine with commas: grey,short.",
    ),
]


@dataclasses.dataclass(frozen=True)
class TilingFlags:
    """How slides are cut into tiles."""

    mpp: Annotated[
        float | None, typer.Option("--mpp", help="Slides: tile resolution in µm per pixel (default 0.5).")
    ] = None
    tile: Annotated[int | None, typer.Option("--tile", help="Slides: tile size in pixels (default 256).")] = None
    tissue: Annotated[
        float | None, typer.Option("--tissue", help="Slides: minimum tissue fraction of a tile (default 0.5).")
    ] = None
    slide_mpp: Annotated[
        float | None,
        typer.Option("--slide-mpp", help="Slides: µm per pixel at full resolution, where the file does not state it."),
    ] = None
    skip_unknown_mpp: Annotated[
        bool, typer.Option("--skip-unknown-mpp", help="Slides: leave out those without a resolution.")
    ] = False

    def tiling(self) -> Tiling:
        from saccade.data.slides.tiling import Tiling

        return Tiling(self.mpp, self.tile, self.tissue, self.slide_mpp, skip_unknown_mpp=self.skip_unknown_mpp)

    def settings(self) -> dict[str, object]:
        return {
            "data.mpp": self.mpp,
            "data.tile_px": self.tile,
            "data.tissue": self.tissue,
            "data.slide_mpp": self.slide_mpp,
            "data.skip_unknown_mpp": self.skip_unknown_mpp or None,
        }


@dataclasses.dataclass(frozen=True)
class LabelFlags:
    """Where labels and groups are read from."""

    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV or Parquet table with the columns path, label, split, group.")
    ] = None
    label: Annotated[str | None, typer.Option("--label", help="Column with the class.")] = None
    group: Group = None

    def settings(self) -> dict[str, object]:
        manifest = None if self.labels is None else str(self.labels)
        return {"data.manifest": manifest, "data.label": self.label, "data.group": self.group}


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Size and length of a training run."""

    size: Size = None
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the images.")] = None
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Length of the run in minutes, from start-up to report.")
    ] = None
    batch: Batch = None
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed (default 0).")] = None

    def settings(self) -> dict[str, object]:
        return {
            "model.size_px": self.size,
            "train.epochs": self.epochs,
            "train.steps": self.steps,
            "train.minutes": self.minutes,
            "train.batch": self.batch,
            "train.seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class SettingsFlags:
    """Settings by file and by name; see ``cli/settings.py`` for which of them wins."""

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML file of settings, e.g. the config.yaml of a run; other options and --set take precedence.",
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of config.yaml, e.g. train.keep=3; repeatable."),
    ] = None


def option_values(flags: DataclassInstance) -> dict[str, object]:
    """Values of a group by the names of its options; None for those that are not given."""
    return {f"--{name.replace('_', '-')}": None if value is False else value for name, value in vars(flags).items()}


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: each parameter that is a group replaced by the options of the group."""
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        annotation = hints[parameter.name]
        if not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        options = typing.get_type_hints(annotation, include_extras=True)
        fields = dataclasses.fields(annotation)
        groups[parameter.name] = (annotation, [field.name for field in fields])
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
            )
            for field in fields
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, (group, fields) in groups.items():
            values[name] = group(**{field: values.pop(field) for field in fields})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# --- values of options ---------------------------------------------------------------------------


def split_words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated value."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def split_floats(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in split_words(text))
    except ValueError:
        raise UsageError(f"{option} takes numbers", got=text, expected="for example 1,0.25") from None


def split_integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in split_words(text))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers", got=text, expected="for example 100,300,1000") from None


def refuse(options: Mapping[str, object], where: str, *, expected: str | None = None) -> None:
    """Raise UsageError when one of the options (by their names; None: not given) is given where it has no effect."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        verb, pronoun = ("has", "it") if len(given) == 1 else ("have", "them")
        raise UsageError(f"{', '.join(given)} {verb} no effect {where}", expected=expected, hint=f"leave {pronoun} out")
