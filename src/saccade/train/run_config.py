"""The configuration of a run: what was asked for (``RunConfig``), and what that became (``ResolvedRun``).

On disk (config.yaml) and in dotted keys the section of the method has the method's name, e.g. ``dino.out_dim``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from saccade.augment.settings import ResolvedViews, ViewsConfig
from saccade.base import config, places
from saccade.base.config import resolve_section, section_from_dict
from saccade.base.files import write_text
from saccade.errors import UsageError, unknown
from saccade.methods.registry import card_of
from saccade.methods.supervised import SupervisedConfig
from saccade.train.settings import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    ResolvedData,
    ResolvedModel,
    ResolvedOptim,
    ResolvedTrain,
    TrainConfig,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as MethodConfig

FILE = "config.yaml"


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run, some of which may be None: open, and decided from the data.

    ``method`` is the configuration of the method that ``train.method`` names (``config_cls`` of its card).
    """

    data: DataConfig
    model: ModelConfig
    views: ViewsConfig
    method: MethodConfig
    optim: OptimConfig
    train: TrainConfig

    @property
    def sections(self) -> Mapping[str, Any]:
        """The sections by name, in the order of config.yaml."""
        return {
            "data": self.data,
            "model": self.model,
            "views": self.views,
            self.train.method: self.method,
            "optim": self.optim,
            "train": self.train,
        }

    def with_sections(self, sections: Mapping[str, Any]) -> Self:
        """The same configuration with other sections."""
        changed = {name: value for name, value in sections.items() if name != self.train.method}
        if changed["train"].method != self.train.method:
            raise UsageError("train.method cannot be set", got=changed["train"].method, hint="name it with --method")
        return dataclasses.replace(self, method=sections[self.train.method], **changed)

    @property
    def frozen(self) -> bool:
        """Whether labels train a head only, on a backbone that stays as it is."""
        return isinstance(self.method, SupervisedConfig) and self.method.frozen


@dataclass(frozen=True, kw_only=True)
class ResolvedRun(RunConfig):
    """The settings of a run without None, as config.yaml holds them."""

    data: ResolvedData
    model: ResolvedModel
    views: ResolvedViews
    optim: ResolvedOptim
    train: ResolvedTrain


def default_config(method: str) -> RunConfig:
    """Every section with its defaults, for one method. Raises UsageError for an unknown method."""
    card = card_of(method)
    train = TrainConfig(method=card.name)
    return RunConfig(DataConfig(), ModelConfig(), ViewsConfig(), card.config_cls(), OptimConfig(), train)


def absolute_paths(run: RunConfig) -> RunConfig:
    """The configuration with absolute paths of the manifest and the weights, so that it holds in any folder."""
    paths = {"data.manifest": run.data.manifest, "model.weights": run.model.weights}
    return config.override(
        run, {k: str(Path(path).resolve()) for k, path in paths.items() if path and Path(path).exists()}
    )


def save_config(folder: Path, run: ResolvedRun) -> None:
    """Write config.yaml with base names of data and weights, and their places to data.json. Raises StorageError."""
    values = config.to_dict(run)
    places.write_places(folder / places.FILE, places.places_of(values, folder))
    write_text(folder / FILE, config.to_yaml(places.without_places(values)))


def load_config(folder: Path) -> ResolvedRun:
    """The configuration of a run folder, also of version 0.1. Raises UsageError where it has none or a wrong one."""
    path = folder / FILE
    values = config.load(path)
    try:
        return run_from_dict(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", got=error.got, expected=error.expected, hint=error.hint) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path} is not the configuration of a run", got=repr(error)) from error


def run_from_dict(values: Mapping[str, Mapping[str, Any]]) -> ResolvedRun:
    """The inverse of ``base.config.to_dict``, of values under their names of today (see ``base.config.load``)."""
    run = default_config(str(values["train"]["method"]))
    for section in values:
        if section not in run.sections:
            raise unknown("section", section, run.sections)

    def read(section: str) -> Any:
        return section_from_dict(section, type(run.sections[section]), values.get(section, {}))

    return ResolvedRun(
        data=resolve_section(ResolvedData, read("data")),
        model=resolve_section(ResolvedModel, read("model")),
        views=resolve_section(ResolvedViews, read("views")),
        method=read(run.train.method),
        optim=resolve_section(ResolvedOptim, read("optim")),
        train=resolve_section(ResolvedTrain, read("train")),
    )
