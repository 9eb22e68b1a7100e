"""A whole pretraining run: open, decode, resolve, build, train, save. One function a stage.

``start`` begins a run in an empty folder, ``resume`` continues one; both end in ``_train``.
"""

from __future__ import annotations

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

from saccade import config, runs, runtime
from saccade.architectures import ARCHITECTURES, Settings, configured, is_grid, parse
from saccade.augment.views import ViewsConfig
from saccade.backbones.build import Network, build, use_checkpointing
from saccade.backbones.weights import load_model, load_timm_state, save_model, weights_hash
from saccade.classify import save_classifier
from saccade.config import Sections
from saccade.contracts import Source
from saccade.data.intensity import make_intensity
from saccade.data.loader import ImageCache, build_cache, check_damage, input_spec
from saccade.data.slide_cache import must_stream, stream_tiles, usual_workers
from saccade.data.slides.source import tiles_in
from saccade.data.survey import typical_px
from saccade.errors import DataError, UsageError
from saccade.methods.base import Method
from saccade.methods.build import build_method, config_type
from saccade.methods.supervised import Supervised
from saccade.train import afford, checkpoint
from saccade.train.choose import Chooser
from saccade.train.doctor import Doctor, settings_of
from saccade.train.illnesses import Diagnosis, shown
from saccade.train.live import LiveProbe
from saccade.train.loop import Console, Judge, Plan, Quiet, fit, learn
from saccade.train.optim import make_optimizer
from saccade.train.part import (
    Opened,
    Shares,
    describe_data,
    divide,
    files_of,
    open_part,
    settle_intensity,
    settle_tiles,
)
from saccade.train.resolve import check_axes, check_sections, resolve, resolve_length, resolve_size
from saccade.train.settings import DataConfig, ModelConfig, OptimConfig, TrainConfig
from saccade.train.validate import Validation

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

OPTIONS = ("positions", "norm", "registers", "layer_scale", "drop_path", "attention", "pool", "stem")
"""Settings of ``model`` that go to the network."""


def section_types(method: str) -> dict[str, type]:
    return {
        "data": DataConfig,
        "model": ModelConfig,
        "views": ViewsConfig,
        method: config_type(method),
        "optim": OptimConfig,
        "train": TrainConfig,
    }


def default_sections(method: str) -> Sections:
    """Every section with its defaults, for one method."""
    sections = {name: kind() for name, kind in section_types(method).items()}
    return sections | {"train": dataclasses.replace(sections["train"], method=method)}


def absolute_paths(sections: Sections) -> Sections:
    """Files that a resumed run needs are found from any folder."""
    named = {"data.manifest": sections["data"].manifest, "model.weights": sections["model"].weights}
    return config.override(sections, {k: str(Path(v).resolve()) for k, v in named.items() if v and Path(v).exists()})


# --- model --------------------------------------------------------------------------------------


def model_options(model: ModelConfig) -> dict[str, object]:
    """Options for ``build``; UsageError for a setting that this network has no use for."""
    known, defaults = parse(model.backbone).options, ModelConfig()
    found: dict[str, object] = {}
    for name in OPTIONS:
        value = getattr(model, name)
        if not value or value == getattr(defaults, name):
            continue
        if name not in known:
            have = sorted({base.partition("_")[0] for base, s in ARCHITECTURES.items() if name in s.options})
            hint = "add _conv to the name instead" if name == "stem" else None
            raise UsageError(
                f"model.{name} has no effect on {model.backbone}", expected=" or ".join(have) + "...", hint=hint
            )
        found[name] = value
    return found


def check_kind(backbone: str, cache: ImageCache) -> None:
    """UsageError where a network for images meets grids of vectors, or the other way round."""
    if is_grid(parse(backbone)) != cache.grid:
        raise UsageError(
            f"{backbone} reads {'images' if cache.grid else 'grids of vectors'}",
            got="grids of vectors" if cache.grid else "images",
            expected="--backbone grid_tiny or grid_micro" if cache.grid else "a backbone for images",
        )


def inherit(sections: Sections, cache: ImageCache) -> Sections:
    """What the weights a run starts from say of the network and its input, where the settings leave it open."""
    model: ModelConfig = sections["model"]
    data: DataConfig = sections["data"]
    check_kind(model.backbone, cache)
    usual = input_spec(cache, int(model.size_px or 0), grey=data.grey)
    if model.weights:
        loaded = load_model(model.weights, channels=cache.channels, size_px=model.size_px)
        spec = loaded.spec
        if (spec.axes, spec.channels, spec.offset, spec.scale) == (
            usual.axes,
            usual.channels,
            usual.offset,
            usual.scale,
        ):
            usual = spec
    mean, std = data.mean or usual.mean, data.std or usual.std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != cache.channels:
            raise UsageError(f"data.{name} has a value for each channel", got=len(values), expected=cache.channels)
    sections = sections | {"data": dataclasses.replace(data, mean=mean, std=std)}
    if not model.weights:
        return sections
    own: Any = loaded.backbone.config()["options"]
    found = {name: own[name] for name in OPTIONS if name != "drop_path" and own.get(name)}
    open_ = {name: value for name, value in found.items() if getattr(model, name) == getattr(ModelConfig(), name)}
    return sections | {"model": dataclasses.replace(model, **open_)}


def make_method(sections: Sections, channels: int, device: torch.device, *, load_weights: bool = True) -> Method:
    """The networks and the method; only what learns has stochastic depth.

    load_weights: start from ``model.weights``; a resumed run has its own.
    """
    model: ModelConfig = sections["model"]
    train: TrainConfig = sections["train"]
    size_px, axes = model.size_px, sections["data"].axes
    assert size_px is not None and axes is not None
    options = model_options(model)
    still = {name: value for name, value in options.items() if name != "drop_path"}
    made_for = {"channels": channels, "size_px": size_px, "axes": axes, "slices": model.slices}
    student = build(model.backbone, **made_for, options=options, seed=train.seed)
    if train.checkpointing:
        use_checkpointing(student)
    if model.weights and load_weights:
        loaded = load_model(model.weights, channels=channels, size_px=size_px)
        load_timm_state(student, loaded.backbone.state_dict())

    def make_teacher() -> Network:
        return build(model.backbone, **made_for, options=still, seed=train.seed)

    return build_method(train.method, student, make_teacher, sections[train.method], seed=train.seed).to(device)


# --- length -------------------------------------------------------------------------------------


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


# --- runs ---------------------------------------------------------------------------------------


def start(sections: Sections, out: Path, console: Console, opened: Opened | None = None) -> Path:
    """Begin a run in an empty folder and train it to its end. Returns the folder.

    opened   images that are decoded already, at a size that ``model.size_px`` fits; None: ``data.source`` is opened
    """
    device = runtime.pick_device(sections["train"].device)
    runtime.keep_freed_memory()
    console = console if runtime.launched_rank() == 0 else Quiet()
    check_sections(sections)
    model_options(sections["model"])  # complains of what the network has no use for
    with runtime.processes(device):
        if runtime.rank() == 0:
            runs.prepare(out, resume=False)
        runtime.barrier()
        if opened is None:
            sections, opened = _open(sections, device, console)
        shares = _divide(opened.cache, sections)
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
            runs.write_json(out / "data.json", describe_data(opened, shares, sections))
            runs.write_json(out / "env.json", _environment(device, sections["train"].seed) | {"start": start_text})
            save_config(out, sections)
        console.say(settings_table(sections, images))
        console.say(start_text)
        return _train(out, sections, shares, device, console, begin=0)


def afford_run(sections: Sections, shares: Shares, device: torch.device) -> None:
    """Raise MemoryShort where one step cannot fit into memory. The length of a run changes nothing about that."""
    trial = sections | {"train": dataclasses.replace(sections["train"], steps=sections["train"].steps or 1000)}
    settled = resolve_length(trial, len(shares.train), shares.classes)
    network = network_settings(settled, shares.train.channels)
    item = np.dtype(shares.train.flat.dtype).itemsize
    afford.check(afford.workload(settled, network, device, image_item=item), device)


def network_settings(sections: Sections, channels: int) -> Settings:
    """What the network of resolved sections is, without building it."""
    model: ModelConfig = sections["model"]
    axes = 2 if model.slices else sections["data"].axes
    return configured(
        model.backbone, channels=channels, size_px=int(model.size_px or 0), axes=axes, options=model_options(model)
    )


def _open(sections: Sections, device: torch.device, console: Console) -> tuple[Sections, Opened]:
    """Open and decode the images that ``data`` names; the sections with the sizes that follow from them."""
    part = open_part(sections["data"])
    if part.held_out:
        console.say(
            f"the data bring no split: {len(part.held_out):,} labelled images (whole groups) are held out for "
            "evaluation; --set data.split=all learns from all"
        )
    sections = sections | {"data": settle_tiles(settle_intensity(sections["data"], part.source), part.source)}
    axes = part.source.axes
    check_axes(sections, axes)
    sections = _size_of_weights(sections, axes)
    sections = resolve_size(sections, typical_px(part.source, sections["data"].size_mm), device, axes)
    sections = sections | {"data": settle_stream(sections["data"], part.source)}
    cache = _decode(part.source, sections, console)
    return sections, Opened(part.source.name, len(part.source), part.held_out, cache)


def settle_stream(data: DataConfig, source: Source) -> DataConfig:
    """Whether tiles of slides are read when they are wanted, and by how many processes."""
    assert data.cache_px is not None
    stream = must_stream(source, data.cache_px) if data.stream is None else data.stream
    if not stream and data.workers:
        raise UsageError("data.workers has no effect where tiles are decoded once", hint="--set data.stream=true")
    return dataclasses.replace(data, stream=stream, workers=(data.workers or usual_workers()) if stream else 0)


def _size_of_weights(sections: Sections, axes: int) -> Sections:
    """The size that the weights are used to, where none is named and they were made for the same kind of data."""
    model: ModelConfig = sections["model"]
    if model.size_px is not None or not model.weights:
        return sections
    spec = load_model(model.weights).spec
    if spec.axes != axes:
        return sections
    return sections | {"model": dataclasses.replace(model, size_px=spec.size_px)}


def _divide(cache: ImageCache, sections: Sections) -> Shares:
    """The shares of a run, their classes numbered where it learns from labels."""
    train: TrainConfig = sections["train"]
    shares = divide(cache, sections["data"], method=train.method, seed=train.seed)
    if train.method != "supervised":
        return shares
    judge = shares.validation
    return Shares(shares.train.numbered(shares.classes), judge and judge.numbered(shares.classes))


def resume(out: Path, console: Console, named: Mapping[str, Any]) -> Path:
    """Continue a run from its newest whole checkpoint, with the configuration it has; ``named`` must agree."""
    runs.prepare(out, resume=True)
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
        known = [item["sha256"] for item in runs.read_json(out / "data.json")["files"]]
        hashes = [item["sha256"] for item in files_of(shares)]
        if known != hashes:
            raise DataError(
                "the images are not the ones this run began with",
                got=f"{len(hashes)} images, {len(set(hashes) - set(known))} of them new or changed",
                expected=f"{len(known)} images as listed in {out / 'data.json'}",
                hint="restore them, or start a new run with --weights " + str(out),
            )
        console.say(str(runs.read_json(out / "env.json").get("start", "")))
        began = len(checkpoint.available(out)) > 0
        return _train(out, sections, shares, device, console, begin=None if began else 0)


def save_config(out: Path, sections: Sections) -> None:
    runs.write_atomic(out / "config.yaml", config.to_yaml(config.to_dict(sections)))


def reopen(sections: Sections, console: Console) -> Shares:
    """The shares of a run that is there already: its images decoded and divided as they were."""
    return _divide(_decode(open_part(sections["data"]).source, sections, console), sections)


def _decode(source: Source, sections: Sections, console: Console) -> ImageCache:
    data: DataConfig = sections["data"]
    assert data.cache_px is not None
    found = tiles_in(source)
    if found is not None and found[0].unreadable:
        bad = found[0].unreadable
        check_damage(found[0].name, bad, len(bad) + len(found[0].named), data.max_bad)
        console.say("slides that cannot be read are left out:\n" + "\n".join(f"  {n}: {why}" for n, why in bad[:20]))
    if data.stream:
        assert data.workers
        return stream_tiles(source, cache_px=data.cache_px, workers=data.workers, max_bad=data.max_bad, say=console.say)
    cache = build_cache(
        source,
        cache_px=data.cache_px,
        channels=data.channels,
        max_bad=data.max_bad,
        memory_limit_mib=data.cache_mib,
        intensity=make_intensity(data.intensity, data.window or ()) if data.intensity else None,
        size_mm=data.size_mm,
        report=lambda done, total: console.progress(done, total, {}) if done % 64 == 0 or done == total else None,
    )
    if cache.damaged:
        console.say(
            f"{len(cache.damaged)} damaged images are left out:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in cache.damaged[:20])
        )
    return cache


def make_plan(out: Path, sections: Sections, cache: ImageCache, device: torch.device) -> Plan:
    data: DataConfig = sections["data"]
    spec = input_spec(cache, sections["model"].size_px, grey=data.grey)
    spec = dataclasses.replace(spec, mean=data.mean or spec.mean, std=data.std or spec.std)
    pretrained = bool(sections["model"].weights)
    return Plan(out, sections["train"], sections["optim"], sections["views"], spec, device, pretrained)


def _train(
    out: Path, sections: Sections, shares: Shares, device: torch.device, console: Console, *, begin: int | None
) -> Path:
    """Train to the end; where the doctor ends it and ``train.on_collapse`` is repair, go back, change, and go on."""
    for repairs_left in reversed(range(1 + REPAIRS)):
        plan = make_plan(out, sections, shares.train, device)
        method, optimizer, step = _ready(sections, plan, shares.train, console, begin)
        judge: Judge
        if isinstance(method, Supervised) and shares.validation is not None:
            judge = Validation(method, shares.validation, plan, step)
        else:
            judge = LiveProbe(method, shares.train, plan)
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
            runs.write_json(out / "chosen.json", found)
            if found["chosen"] != found["last"]:
                last, reached = reached, int(found["chosen"]["step"])
                console.say(f"the model is the one of step {reached}, not of step {last}: {found['rule']}")
        about = {"method": plan.train.method, "step": reached, "images": len(shares.train)}
        about |= {"start": runs.read_json(out / "env.json").get("start"), "config": config.to_dict(sections)}
        save_model(out / "model", method.backbone, plan.spec, about=about)
        if isinstance(method, Supervised):
            save_classifier(out / "model", method)
    return out


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
    known = runs.read_metrics(out / "metrics.jsonl") if step else []
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


def begins_with(sections: Sections) -> str:
    """Where the weights of a run come from: always said, because random weights look like any others."""
    named = sections["model"].weights
    if not named:
        return f"starting from random weights (seed {sections['train'].seed})"
    return f"starting pretrained from {named} ({weights_hash(named)})"


def settings_table(sections: Sections, images: int) -> str:
    """Every resolved setting, one line a section; printed before the first step."""
    lines = [f"settings, resolved for {images:,} images"]
    for name, values in config.to_dict(sections).items():
        shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items() if value not in ("", None, []))
        lines.append(f"  {name:7s} {shown}")
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value)} numbers]"
    return json.dumps(value) if isinstance(value, (list, Mapping)) else str(value)


def _environment(device: torch.device, seed: int) -> dict[str, Any]:
    return runtime.environment(device) | {"seed": seed, "command": _command(sys.argv), "git": _git_commit()}


def _command(words: Sequence[str]) -> str:
    return shlex.join([Path(words[0]).name, *words[1:]])


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
