"""A study from its first cell to its page. What is done stays done: called again, it goes on where it stood."""

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
from saccade.study.design import SERIES, WAYS, Cell, Grid, StudyConfig, check_grid, find_cells, recall, remember
from saccade.study.images import check_sizes, load, prepare
from saccade.train.loop import Console


def matched_names(backbones: Sequence[str], by: str, size_px: int, channels: int = 3) -> tuple[str, ...]:
    """The backbones, each but the first at the width that brings its parameters or operations nearest the first's."""
    first = flops.cost(backbones[0], size_px=size_px, channels=channels)
    target = first.parameters if by == "params" else first.flops
    rest = (flops.matched(name, target, by, size_px=size_px, channels=channels) for name in backbones[1:])  # type: ignore[arg-type]
    return (backbones[0], *rest)


def compare(study: StudyConfig, grid: Grid, out: Path, *, workers: int, console: Console) -> Path:
    """Do every cell of the grid that is not done yet, then write the page. Returns its path.

    workers   processes that train side by side, each with its share of the cores
    Raises UsageError, DataError; TrainingError when not one cell could be done.
    """
    with lock_folder(out):
        return _compare(study, grid, out, workers=workers, console=console)


def _compare(study: StudyConfig, grid: Grid, out: Path, *, workers: int, console: Console) -> Path:
    check_grid(grid, study)
    for backbone in grid.backbones:
        flops.cost(backbone, size_px=study.size_px)  # complains of names and sizes that do not fit
    remember(out, study)
    console.say(f"the images are decoded once and kept in {out / 'data'}")
    prepare(out, study, lambda done, total: console.progress(done, total, {}))
    images = load(out)
    check_sizes(images, grid.sizes)
    _measure_prices(out, grid, console)
    waiting = [cell for cell in grid.cells() if not cell.done(out)]
    planned = len(list(grid.cells()))
    console.say(f"{planned} cells, {planned - len(waiting)} of them done before, {workers} at a time")
    failed = _do_cells(out, grid, waiting, workers, console)
    if not find_cells(out):
        reason = next(iter(failed.values()), "interrupted")
        raise TrainingError("no cell could be done", got=reason, hint=f"see {out / 'logs'}")
    return write_page(out, grid, failed)


# --- processes ----------------------------------------------------------------------------------


class Worker:
    """One process of ``study.worker``; ``ask`` waits for its answer."""

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
            # Ctrl-C in a terminal reaches the whole group: a run would stop cleanly, and its cell would look done.
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


def _measure_prices(out: Path, grid: Grid, console: Console) -> None:
    """One backbone after the other, twice, nothing beside it; the faster of two timings counts."""
    path = out / "prices.json"
    known = run_folder.read_json(path) if path.exists() else {}
    missing = [name for name in grid.backbones if name not in known]
    for name in missing:
        known[name], drift = _ask_anew(out, name, "price", "drift")
        known[name]["drift"] = drift
    for name in missing:
        (again,) = _ask_anew(out, name, "price")
        known[name]["images_per_second"] = max(known[name]["images_per_second"], again["images_per_second"])
        console.say(f"{name}: {known[name]['images_per_second']:.0f} training images/s")
    if missing:
        run_folder.write_json(path, known)


def _ask_anew(out: Path, backbone: str, *kinds: str) -> list[dict[str, Any]]:
    """The answers of a process of its own, one a kind; before the first, nothing has raised its peak of memory."""
    found = []
    worker = Worker(out, 0, _cores())
    try:
        for kind in kinds:
            reply = worker.ask({"kind": kind, "backbone": backbone})
            if "error" in reply:
                said = f"{backbone} cannot be trained here"
                raise TrainingError(said, got=reply["error"], hint=f"see {out / 'logs'}")
            found.append(reply["found"])
    finally:
        worker.close()
    return found


def _cores() -> int:
    """How many threads there are to share out: OMP_NUM_THREADS where it is set, else the cores of this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return usable_cores()


def _do_cells(out: Path, grid: Grid, waiting: Sequence[Cell], workers: int, console: Console) -> dict[str, str]:
    """Hand the cells to the workers; returns the error of each that failed."""
    todo: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in waiting:
        todo.put(cell)
    failed: dict[str, str] = {}
    lock, done = threading.Lock(), [0]
    stop = threading.Event()
    serving: dict[int, Worker] = {}

    def serve(number: int) -> None:
        worker = serving[number] = Worker(out, number, max(1, _cores() // workers))
        try:
            while not stop.is_set():
                try:
                    cell = todo.get_nowait()
                except queue.Empty:
                    return
                drift = cell.size == max(grid.sizes) and cell.seed == grid.seeds[0]
                reply = worker.ask({"kind": "cell", "cell": vars(cell), "with_drift": drift})
                if reply.get("ended") and stop.is_set():
                    return
                with lock:
                    done[0] += 1
                    _tell(cell, reply, failed, console)
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
                console.say("stopping after the cells that are being trained; a second interrupt ends at once")
                try:
                    _wait(futures)
                except KeyboardInterrupt:
                    for worker in serving.values():
                        worker.process.kill()
    return failed


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _tell(cell: Cell, reply: dict[str, Any], failed: dict[str, str], console: Console) -> None:
    if "error" in reply:
        failed[str(cell)] = reply["error"]
        console.say(f"{cell}: failed: {reply['error']}")
        return
    found = reply["found"]
    shown = ", ".join(f"{name} {100 * s['accuracy']['plain']:.1f} %" for name, s in found["series"].items())
    console.say(f"{cell}: {shown} ({found['seconds']:.0f} s)")


# --- what came out ------------------------------------------------------------------------------


def page_so_far(out: Path) -> Path:
    """The page of all cells that are done, also while others are still trained. UsageError where there are none."""
    cells = find_cells(out)
    if not cells:
        raise UsageError("no cell of this study is done yet", got=out, hint="saccade compare trains them")
    columns = (dict.fromkeys(getattr(cell, name) for cell in cells) for name in ("backbone", "way", "size", "seed"))
    backbones, ways, sizes, seeds = (tuple(column) for column in columns)
    priced = [name for name in run_folder.read_json(out / "prices.json") if name in backbones]
    grid = Grid(tuple(priced), tuple(way for way in WAYS if way in ways), tuple(sorted(sizes)), tuple(sorted(seeds)))
    return write_page(out, grid, {})


def write_page(out: Path, grid: Grid, failed: dict[str, str]) -> Path:
    """Summarise every cell of the grid that is done; write study.json, study.html, study.md and study.csv."""
    study, images = recall(out), load(out)
    cells = [cell for cell in grid.cells() if cell.done(out)]
    truth = images.test.numbered(images.classes).labels
    assert truth is not None
    records = images.test.records
    groups = [record.group for record in records]
    described = {cell: run_folder.read_json(cell.folder(out) / "cell.json") for cell in cells}
    answers = [found for cell in cells for found in _answers(out, cell)]
    prices = run_folder.read_json(out / "prices.json")
    value = {
        "data": {
            "name": _shown(images.name),
            "n_train": len(images.train),
            "n_test": len(images.test),
            "groups_test": len({group for group in groups if group is not None}),
            "classes": images.classes,
            "text": images.text,
        },
        "settings": {key: v for key, v in vars(study).items() if v not in ("", (), 0, 0.0)}
        | {name: _shown(value) for name, value in (("data", study.data), ("manifest", study.manifest)) if value},
        "budget": _budget(study, described),
        "protocol": _protocol(study, grid),
        "backbones": list(grid.backbones),
        "series": {name: words for way, words in WAYS.items() if way in grid.ways for name in SERIES[way]},
        "costs": {name: {k: v for k, v in prices[name].items() if k != "drift"} for name in grid.backbones},
        "drift": _drifts(grid, described, prices),
        "summary": summarise(answers, truth, groups),
        "cells": {
            "done": len(cells),
            "planned": len(list(grid.cells())),
            "failed": [f"{name}: {reason}" for name, reason in failed.items()],
            "seconds": round(sum(found["seconds"] for found in described.values())),
        },
    }
    run_folder.write_json(out / "study.json", value)
    return write_study(out)


def _shown(data: str) -> str:
    """A page goes to others: of a place on this machine it says the last name only."""
    return data if data.startswith("synthetic:") else Path(data).name


def _answers(out: Path, cell: Cell) -> list[Answers]:
    with np.load(cell.folder(out) / "answers.npz") as file:
        arrays = {key: file[key].astype(np.float32) for key in file.files}
    found = []
    for series in SERIES[cell.way]:
        own = {key.partition("|")[2]: scores for key, scores in arrays.items() if key.startswith(series + "|")}
        plain = own.pop("plain")
        found.append(Answers(cell.backbone, series, cell.size, cell.seed, plain, own))
    return found


def _drifts(grid: Grid, described: dict[Cell, Any], prices: dict[str, Any]) -> dict[str, Any]:
    """Curves over the angle: random weights, and each way at the largest size and the first seed."""
    found: dict[str, Any] = {}
    for name in grid.backbones:
        start = prices[name]["drift"]
        found[name] = {"angles": start["angles"], "error": {"random": start["error"]}}
        for cell, value in described.items():
            if cell.backbone == name and cell.size == max(grid.sizes) and value["drift"]:
                found[name]["error"][cell.way] = value["drift"]["error"]
    return found


def _budget(study: StudyConfig, described: dict[Cell, Any]) -> str:
    if study.steps:
        words = f"Every training has {study.steps:,} steps of {study.batch} images (or all, where there are fewer)"
    else:
        words = f"Every training has {study.flops:g} floating-point operations, forward and backward"
        steps: dict[str, set[int]] = {}
        for cell, found in described.items():
            steps.setdefault(cell.backbone, set()).add(int(found["steps"]))
        words += "; steps: " + ", ".join(f"{name} {min(n):,} to {max(n):,}" for name, n in steps.items())
    end = "Fine-tuning after DINO has the same again. The last weights count: nothing is chosen by the test part."
    return f"{words}. {end}"


def _protocol(study: StudyConfig, grid: Grid) -> str:
    words = [
        "Each cell learns from the first n images of a draw: a smaller draw lies inside a larger one, every class has",
        "its share, images are drawn one by one and not by whole groups;",
        f"{len(grid.seeds)} draws with seeds of their own.",
        f"supervised: every image always alike. augmented: {study.augment} augmentation.",
        f"dino: DINO on the n images without labels (recipe {study.dino_recipe}), then k-NN with k = 20 (capped by n),",
        f"logistic regression, and fine-tuning with {study.augment} augmentation.",
        f"Images are {study.size_px} px{', without colour' if study.grey else ''}.",
    ]
    return " ".join(words)
