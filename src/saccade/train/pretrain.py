"""A whole pretraining run: open, decode, resolve, build, train, save. One function a stage.

``start`` begins a run in an empty folder, ``resume`` continues one; both end in ``_train``. What happens before the
first step is in train/prepare, the steps themselves are in train/loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.base import config, run_folder
from saccade.base.contracts import Source
from saccade.base.locks import lock_folder
from saccade.base.places import without_places
from saccade.data.audit.slides import describe_slides
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import DataError, UsageError
from saccade.methods.base import Method
from saccade.methods.diagnosis import Diagnosis, format_value
from saccade.methods.supervised import Supervised
from saccade.models.backbones.weights import save_model
from saccade.train import checkpoint
from saccade.train.checkpoint_selection import CheckpointSelector
from saccade.train.classifier import save_classifier
from saccade.train.clock import clock_of
from saccade.train.data_selection import LoadedData, TrainValSplit, describe_data, files_of
from saccade.train.description import describe_length, describe_start, environment, settings_table
from saccade.train.diagnose import Doctor, save_diagnoses, settings_of
from saccade.train.early_stopping import Validation
from saccade.train.loop import Console, Plan, Quiet, fit, train_step
from saccade.train.memory_check import check_memory, workload
from saccade.train.monitor import LiveProbe
from saccade.train.optim import make_optimizer
from saccade.train.prepare import inherit, make_method, make_plan, model_options, open_images, reopen, split_images
from saccade.train.resolve import check_config, resolve
from saccade.train.run_config import ResolvedRun, RunConfig, load_config, save_config

CHANGEABLE = (
    "optim.lr",
    "optim.clip_norm",
    "train.precision",
    "train.checkpointing",
    "train.device",
    "train.log_every",
    "train.save_every",
    "train.keep",
)
"""What --resume may set anew: ways out of trouble that leave schedules and data as they are."""

MOVED = ("data.source", "data.manifest")
"""Paths that --resume takes where the same images lie elsewhere now: their hashes are compared."""
REPAIRS = 3
"""Repairs of a run before it stops."""


# --- memory and time ----------------------------------------------------------------------------


def steps_in(minutes: float, run: ResolvedRun, plan: Plan, cache: ImageCache) -> int:
    """How many steps fit: a throwaway copy of the run is timed for some seconds, then discarded.

    An estimate for what depends on the length of a run (momenta, intervals of logging); the clock decides its end.
    """
    method = make_method(run, plan.device)
    optimizer = make_optimizer(method, run.optim, plan.device)
    seconds: list[float] = []
    budget = min(5.0, 0.03 * 60 * minutes)
    # Decided together: every step exchanges gradients, so no process may stop alone.
    while len(seconds) < 2 or (not runtime.any_rank(sum(seconds) >= budget) and len(seconds) < 30):
        began = time.perf_counter()
        train_step(plan, method, optimizer, cache, len(seconds), 0.0)
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds[1:])
    return max(1, int(0.9 * minutes * 60 / runtime.max_over_ranks(typical)))


# --- steps --------------------------------------------------------------------------------------


def _ready(
    run: ResolvedRun, plan: Plan, console: Console, begin: int | None
) -> tuple[Method, torch.optim.Optimizer, int, dict[str, Any] | None]:
    """Method, optimiser, step and state of the clock at step ``begin``; None: as the newest checkpoint has them."""
    method = make_method(run, plan.device, load_weights=begin is not None)
    optimizer = make_optimizer(method, plan.optim, plan.device)
    if begin is not None:
        return method, optimizer, begin, None
    step, clock, messages = checkpoint.restore(plan.run, method, optimizer)
    for message in messages:
        console.say(message)
    progress = f", {100 * clock['fraction']:.0f} % of its time" if clock else f" of {plan.train.steps}"
    console.say(f"continuing from step {step}{progress}")
    return method, optimizer, step, clock


def _doctor(out: Path, run: ResolvedRun, images: int, step: int) -> Doctor:
    lines = run_folder.read_metrics(out / "metrics.jsonl") if step else []
    lines = [line for line in lines if line["step"] < step]
    return Doctor(settings_of(config.to_dict(run), images), lines, stop=run.train.on_collapse != "warn")


def _repair(out: Path, run: ResolvedRun, problem: Diagnosis, console: Console) -> ResolvedRun:
    """The configuration with the change that the doctor proposes; checkpoints from the problem on are removed.

    What was done is recorded in repairs.jsonl.
    """
    runtime.barrier()
    changed = config.override(run, dict(problem.change))
    if runtime.rank() == 0:
        checkpoint.drop_from(out, problem.since)
        save_config(out, changed)
        back = max(checkpoint.available(out), default=0)
        record = dataclasses.asdict(problem) | {"change": dict(problem.change), "back_to": back}
        with (out / "repairs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        what = ", ".join(f"{key}={format_value(value)}" for key, value in problem.change.items())
        console.say(f"{problem.name}: back to step {back}, with {what}")
    runtime.barrier()
    return changed


def _evaluator(
    method: Method, split: TrainValSplit, plan: Plan, step: int, console: Console
) -> Validation | CheckpointSelector | LiveProbe:
    """What measures a run at every evaluation."""
    if isinstance(method, Supervised) and split.validation is not None:
        return Validation(method, split.validation, plan, step, say=console.say)
    probe = LiveProbe(method, split.train, plan)
    if probe.note is not None:
        console.say(probe.note)
    if plan.train.choose == "best":
        return CheckpointSelector(probe, method, plan, step, images=len(split.train), say=console.say)
    return probe


def _train(
    out: Path,
    run: ResolvedRun,
    split: TrainValSplit,
    device: torch.device,
    console: Console,
    *,
    begin: int | None,
    deadline: float | None,
) -> Path:
    """Train to the end; where the doctor ends it and ``train.on_collapse`` is repair, go back, change, and go on.

    ``deadline`` is the reading of ``time.monotonic`` at which a run limited by minutes has to end; None: as its
    checkpoint says.
    """
    for repairs_left in reversed(range(1 + REPAIRS)):
        plan = make_plan(out, run, split.train, device)
        method, optimizer, step, saved = _ready(run, plan, console, begin)
        clock = clock_of(run.train, deadline, saved)
        deadline = clock.deadline
        evaluator = _evaluator(method, split, plan, step, console)
        doctor = _doctor(out, run, len(split.train), step)
        reached = fit(
            plan,
            method,
            optimizer,
            split.train,
            start=step,
            clock=clock,
            evaluate=evaluator,
            doctor=doctor,
            console=console,
        )
        problem = doctor.problem
        if problem is None or not problem.change or not repairs_left or plan.train.on_collapse != "repair":
            break
        run = _repair(out, run, problem, console)
        begin = None if checkpoint.available(out) else 0
    if run.train.minutes:  # until now an estimate
        run = _with_steps(run, reached, len(split.train))
        if runtime.rank() == 0:
            save_config(out, run)
    if isinstance(evaluator, Validation):
        runtime.barrier()  # the best state was written by the first process
        reached = evaluator.restore_best()
        console.say(f"the weights of step {reached} were best on the validation images and are kept")
    if runtime.rank() == 0:
        if isinstance(evaluator, CheckpointSelector):
            reached = _select(out, evaluator, reached, console)
        about = {"method": plan.train.method, "step": reached, "images": len(split.train)}
        about |= {
            "start": run_folder.read_json(out / "env.json").get("start"),
            "config": without_places(config.to_dict(run)),
        }
        save_model(out / "model", method.backbone, plan.spec, about=about)
        if isinstance(method, Supervised):
            save_classifier(out / "model", method)
        for diagnosis in save_diagnoses(out):
            if diagnosis.name not in doctor.reported:
                console.say(diagnosis.text())
    return out


def _with_steps(run: ResolvedRun, steps: int, images: int) -> ResolvedRun:
    steps = max(1, steps)
    epochs = round(steps * run.train.images_per_step / images, 3)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, steps=steps, epochs=epochs))


def _select(out: Path, selector: CheckpointSelector, last: int, console: Console) -> int:
    """Put the selected weights into the model and record the choice; returns their step."""
    selection = selector.restore_best()
    if selection is None:
        return last
    run_folder.write_json(out / "chosen.json", selection)
    if selection["chosen"] == selection["last"]:
        return last
    step = int(selection["chosen"]["step"])
    console.say(f"the model is the one of step {step}, not of step {last}: {selection['rule']}")
    return step


# --- runs ---------------------------------------------------------------------------------------


def lock_run(out: Path) -> contextlib.AbstractContextManager[None]:
    """The lock on a run folder, taken by the first process of a run; raises OutputInUse."""
    return lock_folder(out) if runtime.launched_rank() == 0 else contextlib.nullcontext()


def start(
    settings: RunConfig,
    out: Path,
    console: Console,
    loaded: LoadedData | None = None,
    *,
    source: Source | None = None,
    started: float | None = None,
) -> Path:
    """Begin a run in an empty folder and train it to its end. Returns the folder.

    Parameters
    ----------
    loaded
        Images that are decoded already, at a size that ``model.size_px`` fits.
    source
        All images that ``data.source`` names, where they are open already; None opens them.
    started
        ``time.monotonic()`` from which ``train.minutes`` count; None: now.

    Raises
    ------
    OutputInUse, UsageError, DataError, ModelError, MemoryShort, NonFiniteLoss, StorageError
    """
    with lock_run(out):
        return begin(settings, out, console, loaded, source=source, started=started)


def begin(
    settings: RunConfig,
    out: Path,
    console: Console,
    loaded: LoadedData | None = None,
    *,
    source: Source | None = None,
    started: float | None = None,
) -> Path:
    """As ``start``, for a caller that holds the lock."""
    started = time.monotonic() if started is None else started
    device = runtime.pick_device(settings.train.device)
    runtime.keep_freed_memory()
    console = console if runtime.launched_rank() == 0 else Quiet()
    check_config(settings)
    model_options(settings.model)  # raises for settings that the network does not have
    with runtime.processes(device):
        if runtime.rank() == 0:
            run_folder.prepare(out, resume=False)
        runtime.barrier()
        if loaded is None:
            settings, loaded = open_images(settings, device, console, source)
        split = split_images(loaded.cache, settings)
        run = _resolve_checked(inherit(settings, split.train), split, out, device)
        start_text = describe_start(run)
        if runtime.rank() == 0:
            # config.yaml last: where it is, everything that --resume needs is there.
            run_folder.write_json(out / "data.json", describe_data(loaded, split, run) | _slides(loaded, out))
            run_folder.write_json(out / "env.json", environment(device, run.train.seed) | {"start": start_text})
            save_config(out, run)
        console.say(settings_table(run, len(split.train)))
        console.say(start_text)
        if run.train.minutes:
            console.say(describe_length(run, time.monotonic() - started))
        return _train(out, run, split, device, console, begin=0, deadline=started + 60 * run.train.minutes)


def _resolve_checked(settings: RunConfig, split: TrainValSplit, out: Path, device: torch.device) -> ResolvedRun:
    """Decide every setting, check the memory, and time the steps of a run limited by minutes."""
    cache = split.train

    def resolved(steps: int | None = None) -> ResolvedRun:
        return resolve(
            settings,
            images=len(cache),
            channels=cache.channels,
            device=device,
            axes=cache.axes,
            labels=split.classes,
            steps=steps,
        )

    run = resolved()
    item, sides = np.dtype(cache.flat.dtype).itemsize, tuple(cache.shapes[:, 1:].max(axis=0).tolist())
    check_memory(workload(run, device, image_item=item, image_sides=sides), device)
    if not run.train.minutes or settings.train.steps is not None:
        return run
    return resolved(steps_in(run.train.minutes, run, make_plan(out, run, cache, device), cache))


def _slides(loaded: LoadedData, out: Path) -> dict[str, Any]:
    if loaded.slides is None:
        return {}
    tiles, numbers = loaded.slides
    return {"slides": describe_slides(tiles, numbers.tolist(), out)}


def resume(out: Path, console: Console, changes: Mapping[str, Any]) -> Path:
    """Continue a run from its newest readable checkpoint with its own configuration. Returns the folder.

    Parameters
    ----------
    changes
        Settings named beside ``--resume``: they must be those of the run, except CHANGEABLE ones.

    Raises
    ------
    OutputInUse, UsageError, DataError, TrainingError, NonFiniteLoss, StorageError
    """
    with lock_run(out):
        return _continue(out, console, changes)


def _continue(out: Path, console: Console, changes: Mapping[str, Any]) -> Path:
    run_folder.prepare(out, resume=True)
    saved = load_config(out)
    run = config.override(saved, {key: value for key, value in changes.items() if key in (*CHANGEABLE, *MOVED)})
    different = [key for key, value in changes.items() if config.override(run, {key: value}) != run]
    if different:
        raise UsageError(
            "--resume continues with the settings the run has",
            got="other values for " + ", ".join(different),
            hint=f"leave them out, or start a new run with --weights {out}; only these may change: "
            + ", ".join(CHANGEABLE),
        )
    device = runtime.pick_device(run.train.device)
    runtime.keep_freed_memory()
    console = console if runtime.launched_rank() == 0 else Quiet()
    check_config(run)
    with runtime.processes(device):
        split = _reopen_moved(out, run, console)
        _check_same_images(out, split)
        if run != saved and runtime.rank() == 0:
            save_config(out, run)
        console.say(str(run_folder.read_json(out / "env.json").get("start", "")))
        deadline = None
        if not checkpoint.available(out):
            checkpoint.check_never_saved(out, run.train.save_every)
            console.say("the run ended before its first checkpoint; starting again from step 0")
            deadline = time.monotonic() + 60 * run.train.minutes
        begin = None if deadline is None else 0
        return _train(out, run, split, device, console, begin=begin, deadline=deadline)


def _reopen_moved(out: Path, run: ResolvedRun, console: Console) -> TrainValSplit:
    """The images of a run. Raises DataError, with the remedy, where they are not where they were."""
    if not run.data.source.startswith("synthetic:") and not Path(run.data.source).exists():
        raise DataError(
            "the data of this run are not where they were",
            got=run.data.source,
            hint=f"saccade pretrain --resume --out {out} --data NEW continues where the images are the same",
        )
    return reopen(run, console)


def _check_same_images(out: Path, split: TrainValSplit) -> None:
    try:
        recorded = [item["sha256"] for item in run_folder.read_json(out / "data.json")["files"]]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{out / 'data.json'} does not list the images of a run", got=repr(error)) from error
    hashes = [item["sha256"] for item in files_of(split)]
    if recorded != hashes:
        raise DataError(
            "the images are not the ones this run began with",
            got=f"{len(hashes)} images, {len(set(hashes) - set(recorded))} of them new or changed",
            expected=f"{len(recorded)} images as listed in {out / 'data.json'}",
            hint="restore them, or start a new run with --weights " + str(out),
        )
