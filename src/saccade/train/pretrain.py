"""A whole pretraining run: open, decode, resolve, build, train, save. One function a stage.

``start`` begins a run in an empty folder, ``resume`` continues one; both end in ``_train``. What happens before the
first step is in train/prepare, the steps themselves are in train/loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.base import config, run_folder
from saccade.base.config import Sections
from saccade.base.files import write_text
from saccade.base.locks import lock_folder
from saccade.data.audit.slides import describe_slides
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import DataError, UsageError
from saccade.methods.base import Method
from saccade.methods.diagnosis import Diagnosis, shown
from saccade.methods.supervised import Supervised
from saccade.models.backbones.weights import file_fingerprint, save_model
from saccade.train import checkpoint, memory_check
from saccade.train.checkpoint_selection import Chooser
from saccade.train.classifier import save_classifier
from saccade.train.data_selection import Opened, Shares, describe_data, files_of
from saccade.train.diagnose import Doctor, settings_of
from saccade.train.early_stopping import Validation
from saccade.train.loop import Console, Judge, Plan, Quiet, fit, learn
from saccade.train.monitor import LiveProbe
from saccade.train.optim import make_optimizer
from saccade.train.prepare import (
    inherit,
    make_method,
    make_plan,
    model_options,
    network_settings,
    open_images,
    reopen,
    section_types,
    shares_of,
)
from saccade.train.resolve import check_sections, resolve, resolve_length

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

REPAIRS = 3
"""How often a run is repaired before it ends ill."""


# --- what a run says of itself ------------------------------------------------------------------


def _git_commit() -> str | None:
    """Commit of saccade's own checkout, where it runs from one."""
    try:
        found = subprocess.run(
            ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _command(words: Sequence[str]) -> str:
    return shlex.join([Path(words[0]).name, *words[1:]])


def _environment(device: torch.device, seed: int) -> dict[str, Any]:
    return runtime.environment(device) | {"seed": seed, "command": _command(sys.argv), "git": _git_commit()}


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value)} numbers]"
    return json.dumps(value) if isinstance(value, (list, Mapping)) else str(value)


def settings_table(sections: Sections, images: int) -> str:
    """Every resolved setting, one line a section; printed before the first step."""
    lines = [f"settings, resolved for {images:,} images"]
    for name, values in config.to_dict(sections).items():
        shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items() if value not in ("", None, []))
        lines.append(f"  {name:7s} {shown}")
    return "\n".join(lines)


def begins_with(sections: Sections) -> str:
    """Where the weights of a run come from: always said, because random weights look like any others."""
    named = sections["model"].weights
    if not named:
        return f"starting from random weights (seed {sections['train'].seed})"
    return f"starting pretrained from {named} ({file_fingerprint(named)})"


def save_config(out: Path, sections: Sections) -> None:
    write_text(out / "config.yaml", config.to_yaml(config.to_dict(sections)))


# --- memory and time ----------------------------------------------------------------------------


def afford_run(sections: Sections, shares: Shares, device: torch.device) -> None:
    """Raise MemoryShort where one step cannot fit into memory. The length of a run changes nothing about that."""
    trial = sections | {"train": dataclasses.replace(sections["train"], steps=sections["train"].steps or 1000)}
    settled = resolve_length(trial, len(shares.train), shares.classes)
    network = network_settings(settled, shares.train.channels)
    item = np.dtype(shares.train.flat.dtype).itemsize
    memory_check.check(memory_check.workload(settled, network, device, image_item=item), device)


def steps_in(minutes: float, sections: Sections, plan: Plan, shares: Shares) -> int:
    """How many steps fit: a throwaway copy of the run is timed for some seconds, then forgotten.

    5 % are kept back for live evaluation and checkpoints.
    """
    trial = sections | {"train": dataclasses.replace(sections["train"], steps=1000)}
    timed = resolve_length(trial, len(shares.train), shares.classes)
    method = make_method(timed, plan.spec.channels, plan.device)
    optimizer = make_optimizer(method, sections["optim"], plan.device)
    plan = dataclasses.replace(plan, train=timed["train"])
    seconds: list[float] = []
    budget = min(10.0, 2.0 + minutes * 1.5)
    # Decided together: every step exchanges gradients, so no process may stop alone.
    while len(seconds) < 5 or (not runtime.any_rank(sum(seconds) >= budget) and len(seconds) < 60):
        began = time.perf_counter()
        learn(plan, method, optimizer, shares.train, len(seconds))
        seconds.append(time.perf_counter() - began)
    typical = statistics.mean(sorted(seconds[2:])[: max(3, int(0.9 * len(seconds)))])
    return max(1, int(0.95 * minutes * 60 / runtime.max_over_ranks(typical)))


# --- steps --------------------------------------------------------------------------------------


def _ready(
    sections: Sections, plan: Plan, cache: ImageCache, console: Console, begin: int | None
) -> tuple[Method, torch.optim.Optimizer, int]:
    """Method and optimiser at step ``begin``; None: as the newest checkpoint has them."""
    method = make_method(sections, cache.channels, plan.device, load_weights=begin is not None)
    optimizer = make_optimizer(method, plan.optim, plan.device)
    if begin is not None:
        return method, optimizer, begin
    state, messages = checkpoint.load_newest(plan.run)
    for message in messages:
        console.say(message)
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    console.say(f"continuing from step {state['step']} of {plan.train.steps}")
    return method, optimizer, int(state["step"])


def _doctor(out: Path, sections: Sections, images: int, step: int) -> Doctor:
    known = run_folder.read_metrics(out / "metrics.jsonl") if step else []
    lines = [line for line in known if line["step"] < step]
    stop = sections["train"].on_collapse != "warn"
    return Doctor(settings_of(config.to_dict(sections), images), lines, stop=stop)


def _repair(out: Path, sections: Sections, ill: Diagnosis, console: Console) -> Sections:
    """The sections with the change that the doctor asks for; checkpoints from the illness on are removed.

    What was done is kept in repairs.jsonl.
    """
    runtime.barrier()
    changed = config.override(sections, dict(ill.change))
    if runtime.rank() == 0:
        checkpoint.drop_from(out, ill.since)
        save_config(out, changed)
        back = max(checkpoint.available(out), default=0)
        with (out / "repairs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(ill) | {"change": dict(ill.change), "back_to": back}) + "\n")
        what = ", ".join(f"{key}={shown(value)}" for key, value in ill.change.items())
        console.say(f"{ill.name}: back to step {back}, with {what}")
    runtime.barrier()
    return changed


def _train(
    out: Path, sections: Sections, shares: Shares, device: torch.device, console: Console, *, begin: int | None
) -> Path:
    """Train to the end; where the doctor ends it and ``train.on_collapse`` is repair, go back, change, and go on."""
    for repairs_left in reversed(range(1 + REPAIRS)):
        plan = make_plan(out, sections, shares.train, device)
        method, optimizer, step = _ready(sections, plan, shares.train, console, begin)
        judge: Judge
        if isinstance(method, Supervised) and shares.validation is not None:
            judge = Validation(method, shares.validation, plan, step, say=console.say)
        else:
            judge = probe = LiveProbe(method, shares.train, plan)
            if probe.without is not None:
                console.say(probe.without)
            if plan.train.choose == "best":
                judge = Chooser(judge, method, plan, step, images=len(shares.train), say=console.say)
        doctor = _doctor(out, sections, len(shares.train), step)
        reached = fit(plan, method, optimizer, shares.train, start=step, evaluate=judge, doctor=doctor, console=console)
        ill = doctor.ill
        if ill is None or not ill.change or not repairs_left or plan.train.on_collapse != "repair":
            break
        sections = _repair(out, sections, ill, console)
        begin = None if checkpoint.available(out) else 0
    if isinstance(judge, Validation):
        runtime.barrier()  # the best state was written by the first process
        reached = judge.take_best()
        console.say(f"the weights of step {reached} were best on the validation images and are kept")
    if runtime.rank() == 0:
        if isinstance(judge, Chooser) and (found := judge.take()) is not None:
            run_folder.write_json(out / "chosen.json", found)
            if found["chosen"] != found["last"]:
                last, reached = reached, int(found["chosen"]["step"])
                console.say(f"the model is the one of step {reached}, not of step {last}: {found['rule']}")
        about = {"method": plan.train.method, "step": reached, "images": len(shares.train)}
        about |= {"start": run_folder.read_json(out / "env.json").get("start"), "config": config.to_dict(sections)}
        save_model(out / "model", method.backbone, plan.spec, about=about)
        if isinstance(method, Supervised):
            save_classifier(out / "model", method)
    return out


# --- runs ---------------------------------------------------------------------------------------


def lock_run(out: Path) -> contextlib.AbstractContextManager[None]:
    """The lock on a run folder, taken by the first process of a run; raises OutputInUse."""
    return lock_folder(out) if runtime.launched_rank() == 0 else contextlib.nullcontext()


def start(sections: Sections, out: Path, console: Console, opened: Opened | None = None) -> Path:
    """Begin a run in an empty folder and train it to its end. Returns the folder.

    opened   images that are decoded already, at a size that ``model.size_px`` fits; None: ``data.source`` is opened
    """
    with lock_run(out):
        return begin(sections, out, console, opened)


def begin(sections: Sections, out: Path, console: Console, opened: Opened | None = None) -> Path:
    """As ``start``, for a caller that holds the lock."""
    device = runtime.pick_device(sections["train"].device)
    runtime.keep_freed_memory()
    console = console if runtime.launched_rank() == 0 else Quiet()
    check_sections(sections)
    model_options(sections["model"])  # complains of what the network has no use for
    with runtime.processes(device):
        if runtime.rank() == 0:
            run_folder.prepare(out, resume=False)
        runtime.barrier()
        if opened is None:
            sections, opened = open_images(sections, device, console)
        shares = shares_of(opened.cache, sections)
        images, channels = len(shares.train), shares.train.channels
        sections = inherit(sections, shares.train)
        sections = resolve(sections, images=images, channels=channels, device=device, axes=shares.train.axes)
        afford_run(sections, shares, device)
        if sections["train"].minutes and sections["train"].steps is None:
            plan = make_plan(out, sections, shares.train, device)
            steps = steps_in(sections["train"].minutes, sections, plan, shares)
            sections = sections | {"train": dataclasses.replace(sections["train"], steps=steps)}
        sections = resolve_length(sections, images, shares.classes)
        start_text = begins_with(sections)
        if runtime.rank() == 0:
            # config.yaml last: where it is, everything that --resume needs is there.
            run_folder.write_json(out / "data.json", describe_data(opened, shares, sections) | _slides(opened, out))
            run_folder.write_json(
                out / "env.json", _environment(device, sections["train"].seed) | {"start": start_text}
            )
            save_config(out, sections)
        console.say(settings_table(sections, images))
        console.say(start_text)
        return _train(out, sections, shares, device, console, begin=0)


def _slides(opened: Opened, out: Path) -> dict[str, Any]:
    if opened.slides is None:
        return {}
    tiles, numbers = opened.slides
    return {"slides": describe_slides(tiles, numbers.tolist(), out)}


def resume(out: Path, console: Console, named: Mapping[str, Any]) -> Path:
    """Continue a run from its newest whole checkpoint, with the configuration it has; ``named`` must agree."""
    with lock_run(out):
        return _continue(out, console, named)


def _continue(out: Path, console: Console, named: Mapping[str, Any]) -> Path:
    run_folder.prepare(out, resume=True)
    values = config.load(out / "config.yaml")
    sections = config.from_dict(section_types(values["train"]["method"]), values)
    changed = config.override(sections, {key: value for key, value in named.items() if key in CHANGEABLE})
    differ = [key for key, value in named.items() if config.override(changed, {key: value}) != changed]
    if differ:
        raise UsageError(
            "--resume continues with the settings the run has",
            got="other values for " + ", ".join(differ),
            hint=f"leave them out, or start a new run with --weights {out}; only these may change: "
            + ", ".join(CHANGEABLE),
        )
    if changed != sections:
        sections = changed
        save_config(out, sections)
    device = runtime.pick_device(sections["train"].device)
    runtime.keep_freed_memory()
    console = console if runtime.launched_rank() == 0 else Quiet()
    check_sections(sections)
    with runtime.processes(device):
        shares = reopen(sections, console)
        known = [item["sha256"] for item in run_folder.read_json(out / "data.json")["files"]]
        hashes = [item["sha256"] for item in files_of(shares)]
        if known != hashes:
            raise DataError(
                "the images are not the ones this run began with",
                got=f"{len(hashes)} images, {len(set(hashes) - set(known))} of them new or changed",
                expected=f"{len(known)} images as listed in {out / 'data.json'}",
                hint="restore them, or start a new run with --weights " + str(out),
            )
        console.say(str(run_folder.read_json(out / "env.json").get("start", "")))
        began = len(checkpoint.available(out)) > 0
        return _train(out, sections, shares, device, console, begin=None if began else 0)
