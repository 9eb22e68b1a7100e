"""Run a study from its first trial to its page. Called again, it continues: completed trials are not repeated."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base import run_folder
from saccade.base.locks import lock_folder
from saccade.base.machine import usable_cores
from saccade.cost import flops
from saccade.errors import TrainingError, UsageError
from saccade.evaluation.learning_curves import Answers, summarise
from saccade.reporting.study_report import write_study
from saccade.study.design import (
    REGIMES,
    SERIES,
    Design,
    StudyConfig,
    Trial,
    check_design,
    find_trials,
    read_settings,
    write_settings,
)
from saccade.study.images import check_sizes, load, prepare
from saccade.train.loop import Console


def matched_names(backbones: Sequence[str], by: str, size_px: int, channels: int = 3) -> tuple[str, ...]:
    """The backbones, with the width of each scaled to the parameters or FLOPs of the first."""
    first = flops.cost(backbones[0], size_px=size_px, channels=channels)
    target = first.parameters if by == "params" else first.flops
    rest = (flops.matched(name, target, by, size_px=size_px, channels=channels) for name in backbones[1:])  # type: ignore[arg-type]
    return (backbones[0], *rest)


def compare(study: StudyConfig, design: Design, out: Path, *, workers: int, console: Console) -> Path:
    """Run every trial of the design that is not completed yet, then write the page. Returns its path.

    workers   processes that train in parallel; the cores are divided between them
    Raises UsageError, DataError; TrainingError when all trials fail.
    """
    with lock_folder(out):
        return _compare(study, design, out, workers=workers, console=console)


def _compare(study: StudyConfig, design: Design, out: Path, *, workers: int, console: Console) -> Path:
    check_design(design, study)
    for backbone in design.backbones:
        flops.cost(backbone, size_px=study.size_px)  # raises for unknown names and unsuitable sizes
    write_settings(out, study)
    console.say(f"decoding the images once into {out / 'data'}")
    prepare(out, study, lambda done, total: console.progress(done, total, {}))
    images = load(out)
    check_sizes(images, design.sizes)
    _measure_prices(out, design, console)
    waiting = [trial for trial in design.trials() if not trial.is_done(out)]
    planned = len(list(design.trials()))
    console.say(f"{planned} trials, {planned - len(waiting)} of them completed before, {workers} in parallel")
    failed = _run_trials(out, design, waiting, workers, console)
    if not find_trials(out):
        reason = next(iter(failed.values()), "interrupted")
        raise TrainingError("all trials failed", got=reason, hint=f"see {out / 'logs'}")
    return write_page(out, design, failed)


# --- processes ----------------------------------------------------------------------------------


class Worker:
    """One process of ``study.worker``; ``ask`` waits for its result."""

    def __init__(self, out: Path, number: int, threads: int):
        (out / "logs").mkdir(exist_ok=True)
        self.log = (out / "logs" / f"worker-{number}.log").open("a", encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "saccade.study.worker", str(out), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
            # Ctrl-C in a terminal reaches the whole group: a run would stop cleanly, and its trial would look complete.
            start_new_session=True,
        )

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            why = "; the system may have run out of memory" if code == -9 else ""
            return {"error": f"its process ended with code {code}{why}", "ended": True}
        return json.loads(line)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


def _measure_prices(out: Path, design: Design, console: Console) -> None:
    """Measure one backbone at a time, twice, with nothing in parallel; the faster timing counts."""
    path = out / "prices.json"
    prices = run_folder.read_json(path) if path.exists() else {}
    missing = [name for name in design.backbones if name not in prices]
    for name in missing:
        prices[name], drift = _ask_new_worker(out, name, "price", "drift")
        prices[name]["drift"] = drift
    for name in missing:
        (second,) = _ask_new_worker(out, name, "price")
        prices[name]["images_per_second"] = max(prices[name]["images_per_second"], second["images_per_second"])
        console.say(f"{name}: {prices[name]['images_per_second']:.0f} training images/s")
    if missing:
        run_folder.write_json(path, prices)


def _ask_new_worker(out: Path, backbone: str, *kinds: str) -> list[dict[str, Any]]:
    """Results of a new process, one per kind; nothing before the first has raised its peak memory."""
    results = []
    worker = Worker(out, 0, _cores())
    try:
        for kind in kinds:
            reply = worker.ask({"kind": kind, "backbone": backbone})
            if "error" in reply:
                message = f"{backbone} cannot be trained on this machine"
                raise TrainingError(message, got=reply["error"], hint=f"see {out / 'logs'}")
            results.append(reply["result"])
    finally:
        worker.close()
    return results


def _cores() -> int:
    """Number of threads of all workers: OMP_NUM_THREADS where it is set, else the cores of this process."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdecimal() and int(setting) > 0 else usable_cores()


def _run_trials(out: Path, design: Design, waiting: Sequence[Trial], workers: int, console: Console) -> dict[str, str]:
    """Run the trials in the workers; returns the error of each that failed."""
    todo: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in waiting:
        todo.put(trial)
    failed: dict[str, str] = {}
    lock, done = threading.Lock(), [0]
    stop = threading.Event()
    serving: dict[int, Worker] = {}

    def serve(number: int) -> None:
        worker = serving[number] = Worker(out, number, max(1, _cores() // workers))
        try:
            while not stop.is_set():
                try:
                    trial = todo.get_nowait()
                except queue.Empty:
                    return
                drift = trial.size == max(design.sizes) and trial.seed == design.seeds[0]
                reply = worker.ask({"kind": "trial", "trial": vars(trial), "with_drift": drift})
                if reply.get("ended") and stop.is_set():
                    return
                with lock:
                    done[0] += 1
                    _report(trial, reply, failed, console)
                    console.progress(done[0], len(waiting), {"failed": len(failed)})
                if reply.get("ended"):
                    worker.close()
                    worker = serving[number] = Worker(out, number, max(1, _cores() // workers))
        finally:
            worker.close()

    if waiting:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(serve, number) for number in range(min(workers, len(waiting)))]
            try:
                _wait(futures)
            except KeyboardInterrupt:
                stop.set()
                console.say("stopping after the current trials; a second interrupt stops at once")
                try:
                    _wait(futures)
                except KeyboardInterrupt:
                    for worker in serving.values():
                        worker.process.kill()
    return failed


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _report(trial: Trial, reply: dict[str, Any], failed: dict[str, str], console: Console) -> None:
    if "error" in reply:
        failed[str(trial)] = reply["error"]
        console.say(f"{trial}: failed: {reply['error']}")
        return
    result = reply["result"]
    accuracies = ", ".join(f"{name} {100 * s['accuracy']['plain']:.1f} %" for name, s in result["series"].items())
    console.say(f"{trial}: {accuracies} ({result['seconds']:.0f} s)")


# --- results ------------------------------------------------------------------------------------


def page_so_far(out: Path) -> Path:
    """Write the page of all completed trials, also while others are running. Raises UsageError when there are none."""
    trials = find_trials(out)
    if not trials:
        raise UsageError("no trial of this study is complete yet", got=out, hint="saccade compare runs them")
    columns = (
        dict.fromkeys(getattr(trial, name) for trial in trials) for name in ("backbone", "regime", "size", "seed")
    )
    backbones, regimes, sizes, seeds = (tuple(column) for column in columns)
    priced = [name for name in run_folder.read_json(out / "prices.json") if name in backbones]
    design = Design(
        tuple(priced),
        tuple(regime for regime in REGIMES if regime in regimes),
        tuple(sorted(sizes)),
        tuple(sorted(seeds)),
    )
    return write_page(out, design, {})


def write_page(out: Path, design: Design, failed: dict[str, str]) -> Path:
    """Summarize the completed trials of the design; write study.json, study.html, study.md and study.csv."""
    study, images = read_settings(out), load(out)
    trials = [trial for trial in design.trials() if trial.is_done(out)]
    truth = images.test.numbered(images.classes).labels
    assert truth is not None
    records = images.test.records
    groups = [record.group for record in records]
    described = {trial: run_folder.read_json(trial.folder(out) / "cell.json") for trial in trials}
    answers = [item for trial in trials for item in _answers(out, trial)]
    prices = run_folder.read_json(out / "prices.json")
    value = {
        "data": {
            "name": _public_name(images.name),
            "n_train": len(images.train),
            "n_test": len(images.test),
            "groups_test": len({group for group in groups if group is not None}),
            "classes": images.classes,
            "text": images.text,
        },
        "settings": {key: v for key, v in vars(study).items() if v not in ("", (), 0, 0.0)}
        | {name: _public_name(value) for name, value in (("data", study.data), ("manifest", study.manifest)) if value},
        "budget": _budget(study, described),
        "protocol": _protocol(study, design),
        "backbones": list(design.backbones),
        "series": {
            name: words for regime, words in REGIMES.items() if regime in design.regimes for name in SERIES[regime]
        },
        "costs": {name: {k: v for k, v in prices[name].items() if k != "drift"} for name in design.backbones},
        "drift": _drifts(design, described, prices),
        "summary": summarise(answers, truth, groups),
        "cells": {
            "done": len(trials),
            "planned": len(list(design.trials())),
            "failed": [f"{name}: {reason}" for name, reason in failed.items()],
            "seconds": round(sum(result["seconds"] for result in described.values())),
        },
    }
    run_folder.write_json(out / "study.json", value)
    return write_study(out)


def _public_name(data: str) -> str:
    """The name of the data without its folder: the page may be published."""
    return data if data.startswith("synthetic:") else Path(data).name


def _answers(out: Path, trial: Trial) -> list[Answers]:
    with np.load(trial.folder(out) / "answers.npz") as file:
        arrays = {key: file[key].astype(np.float32) for key in file.files}
    answers = []
    for series in SERIES[trial.regime]:
        by_condition = {key.partition("|")[2]: scores for key, scores in arrays.items() if key.startswith(series + "|")}
        plain = by_condition.pop("plain")
        answers.append(Answers(trial.backbone, series, trial.size, trial.seed, plain, by_condition))
    return answers


def _drifts(design: Design, described: dict[Trial, Any], prices: dict[str, Any]) -> dict[str, Any]:
    """Curves over the angle: random weights, and each regime at the largest size and the first seed."""
    drifts: dict[str, Any] = {}
    for name in design.backbones:
        start = prices[name]["drift"]
        drifts[name] = {"angles": start["angles"], "error": {"random": start["error"]}}
        for trial, value in described.items():
            if trial.backbone == name and trial.size == max(design.sizes) and value["drift"]:
                drifts[name]["error"][trial.regime] = value["drift"]["error"]
    return drifts


def _budget(study: StudyConfig, described: dict[Trial, Any]) -> str:
    if study.steps:
        words = f"Every training has {study.steps:,} steps of {study.batch} images (or all, where there are fewer)"
    else:
        words = f"Every training has {study.flops:g} floating-point operations, forward and backward"
        steps: dict[str, set[int]] = {}
        for trial, result in described.items():
            steps.setdefault(trial.backbone, set()).add(int(result["steps"]))
        words += "; steps: " + ", ".join(f"{name} {min(n):,} to {max(n):,}" for name, n in steps.items())
    end = "Fine-tuning after DINO has the same again. The last weights count: nothing is chosen by the test part."
    return f"{words}. {end}"


def _protocol(study: StudyConfig, design: Design) -> str:
    words = [
        "Each trial learns from the first n images of a draw: a smaller draw lies inside a larger one, every class has",
        "its share, images are drawn one by one and not by whole groups;",
        f"{len(design.seeds)} draws with seeds of their own.",
        f"supervised: every image always alike. augmented: {study.augment} augmentation.",
        f"dino: DINO on the n images without labels (recipe {study.dino_recipe}), then k-NN with k = 20 (capped by n),",
        f"logistic regression, and fine-tuning with {study.augment} augmentation.",
        f"Images are {study.size_px} px{', without colour' if study.grey else ''}.",
    ]
    return " ".join(words)
