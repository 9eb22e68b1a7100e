"""``saccade pretrain``: train without labels, and continue an interrupted run.

``backbone="hipt"`` trains a hierarchy over slides, level by level; everything else is one ordinary run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade import runtime
from saccade.base import config
from saccade.data.open import absolute
from saccade.hierarchy import settings as hierarchy_settings
from saccade.hierarchy import train_levels
from saccade.methods.registry import card_of
from saccade.reporting.write import write_report
from saccade.tasks import finetune as finetuning
from saccade.train import pretrain as training
from saccade.train.auto import Names, choose, open_named
from saccade.train.loop import Console, Quiet
from saccade.train.recipes import config_for
from saccade.train.run_config import RunConfig, absolute_paths, load_config
from saccade.train.settings import AUTO


def pretrain(
    data: str | Path,
    *,
    out: str | Path,
    method: str = AUTO,
    backbone: str | None = None,
    recipe: str = AUTO,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
    started: float | None = None,
) -> Path:
    """Pretrain a backbone on images without labels.

    Parameters
    ----------
    data : str or Path
        Images, volumes or slides; see ``open_source``.
    out : str or Path
        New folder for the run.
    method : str
        Pretext task, e.g. ``dino``; ``auto``: chosen from the data, the device and the time (docs/studies/auto.md).
    backbone : str, optional
        Architecture, e.g. ``vit_small_patch16``; None: chosen from the data. ``hipt`` trains a hierarchy of tiles,
        regions and slides.
    recipe : str
        Augmentation recipes, separated by commas; ``auto``: chosen likewise.
    settings : mapping, optional
        Settings by dotted key, e.g. ``{"train.minutes": 5, "model.size_px": 64}``. The others are derived from the
        data. ``model.weights`` names a model to start from; its backbone, input size and normalization are used unless
        they are set as well.
    console : Console, optional
        Receives messages and progress; None: silent.
    started : float, optional
        ``time.monotonic()`` from which ``train.minutes`` count; None: now.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    UsageError, ModelError, DataError, NonFiniteLoss, MemoryShort, StorageError

    Examples
    --------
    >>> import saccade, tempfile
    >>> small = {"train.steps": 2, "train.batch": 8, "model.size_px": 32, "dino.out_dim": 32}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = saccade.pretrain(
    ...         "synthetic:tissue?n=32&size=32", out=f"{folder}/run", backbone="resnet10_w8", settings=small
    ...     )
    ...     sorted(path.name for path in (run / "model").iterdir())
    ['README.md', 'config.json', 'digests.json', 'model.safetensors']
    """
    console = console or Quiet()
    started = time.monotonic() if started is None else started
    if backbone == hierarchy_settings.NAME:
        method, recipe = hierarchy_settings.method_and_recipe(method, recipe)
        request = hierarchy_settings.split_settings(str(absolute(data)), method, recipe, settings or {})
        return train_levels.start(request, Path(out), console)
    explicit = dict(settings or {}) | ({} if backbone in (None, AUTO) else {"model.backbone": backbone})
    if weights := str(explicit.get("model.weights", "")):
        del explicit["model.weights"]
        explicit = finetuning.named_model(weights, explicit) | explicit
    device = runtime.pick_device(explicit.get("train.device"))
    names = Names(method, backbone, recipe).with_settings(explicit)
    source = open_named(str(absolute(data)), explicit) if names.open else None
    names = choose(names, source, device.type, explicit)
    if names.chosen:
        console.say(f"chosen automatically:\n{names.chosen}")
    run_config = override_all(names, {"data.source": str(absolute(data))} | explicit)
    folder = training.start(absolute_paths(run_config), Path(out), console, source=source, started=started)
    return write_report_once(folder)


def override_all(names: Names, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run: its method and recipe, the chosen backbone, then the user's settings."""
    chosen = {"model.backbone": names.backbone} if names.backbone else {}
    run_config = config.override(config_for(names.method, names.recipe), chosen | {"train.chosen": names.chosen})
    return config.override(run_config, settings)


def resume(
    run: str | Path,
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Continue an interrupted run; on the CPU its losses equal those of an uninterrupted run.

    Parameters
    ----------
    run : str or Path
        Folder of the run.
    data, settings : optional
        May repeat what the run was started with.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    UsageError
        When ``data`` or ``settings`` differ from those of the run.
    """
    console = console or Quiet()
    if hierarchy_settings.is_hierarchy(run):
        backbone = ("model.backbone", hierarchy_settings.NAME)
        explicit = {key: value for key, value in (settings or {}).items() if (key, value) != backbone}
        return train_levels.resume(Path(run), None if data is None else str(absolute(data)), explicit, console)
    explicit = dict(settings or {}) | ({} if data is None else {"data.source": str(absolute(data))})
    folder = training.resume(Path(run), console, explicit)
    if card_of(load_config(folder).train.method).uses_labels:
        # Overlap was refused before the first step, or allowed then: here it is marked.
        finetuning.measure(folder, console, allow=True)
    return write_report_once(folder)


def write_report_once(run: Path) -> Path:
    """Write the report of a run, in the first of several processes only."""
    if runtime.launched_rank() == 0:
        write_report(run)
    return run
