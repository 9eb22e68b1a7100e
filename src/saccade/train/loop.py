"""The training loop. It reads from top to bottom: evaluate, save, stop, step, log.

All state of a run is the method (student, teacher, centre), the optimiser and the step number; order and
augmentation are functions of (seed, step), so a resumed run continues bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from saccade import runtime
from saccade.augment.settings import ResolvedViews
from saccade.augment.views import make_views
from saccade.base.contracts import InputSpec, Progress, View
from saccade.base.random import seed_number
from saccade.base.run_folder import Metrics
from saccade.data.cache.image_cache import ImageCache, batch_indices
from saccade.errors import StorageError
from saccade.methods.base import Method
from saccade.train import checkpoint, optim
from saccade.train.clock import Clock
from saccade.train.diagnose import Doctor
from saccade.train.health import Skips
from saccade.train.settings import ResolvedOptim, ResolvedTrain


class Console(Protocol):
    """Where a run reports to; the command line draws a progress bar, tests collect lines."""

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None: ...


class Quiet:
    """A console that keeps messages and shows nothing."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, step: int, total: int, logs: dict[str, float]) -> None:
        pass


class Evaluator(Protocol):
    """Measures a run at every evaluation; ``stop_reason`` says why the run should end early, None: it should not."""

    stop_reason: str | None

    def __call__(self, step: int, fraction: float) -> dict[str, float]: ...


@dataclass(frozen=True)
class Plan:
    """Everything the loop needs, resolved."""

    run: Path
    train: ResolvedTrain
    optim: ResolvedOptim
    views: ResolvedViews
    spec: InputSpec
    device: torch.device
    pretrained: bool = False


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag, so that a run saves before it ends, and SIGUSR1 into another."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
            if sys.platform != "win32":
                self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        return self

    def _note(self, number: int, _frame: Any) -> None:
        self.requested = signal.Signals(number).name
        signal.signal(number, self._previous[number])  # a second signal ends at once

    def _note_save(self, _number: int, _frame: Any) -> None:
        self._save = True

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        save, self._save = self._save, False
        return save

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def save_state(
    plan: Plan,
    method: Method,
    optimizer: torch.optim.Optimizer,
    step: int,
    clock: Mapping[str, float],
    console: Console,
) -> bool:
    """Write a checkpoint from the first process; a full disk is reported, training goes on. True if it is there."""
    failed = False
    if runtime.rank() == 0:
        state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"clock": dict(clock)} if clock else {}
        try:
            checkpoint.save(plan.run, step, state, plan.train.keep)
        except StorageError as error:
            failed = True
            console.say(f"{error}\n  training goes on")
    return not runtime.any_rank(failed)


def keep_skipped(plan: Plan, method: Method, step: int, fraction: float, console: Console) -> None:
    """The state that met a step which was left out, for ``saccade doctor --replay``."""
    state = {"step": step, "fraction": fraction, "method": method.state_dict()}
    try:
        checkpoint.save_named(plan.run, checkpoint.SKIPPED, state)
    except StorageError as error:
        console.say(f"{error}\n  training goes on")


def ids_at(plan: Plan, cache: ImageCache, step: int) -> list[str]:
    """The images of one optimiser step."""
    indices = batch_indices(len(cache), step, plan.train.images_per_step, plan.train.seed)
    return [cache.records[int(i)].id for i in indices]


def read_ahead(plan: Plan, cache: ImageCache, step: int) -> None:
    """Let the tiles of the next step be read while this one is computed."""
    coming = batch_indices(len(cache), step + 1, plan.train.images_per_step, plan.train.seed)
    cache.expect(coming.reshape(-1, plan.train.batch)[:, runtime.rank() :: runtime.world_size()].ravel())


def update(
    plan: Plan, method: Method, optimizer: torch.optim.Optimizer, batches: Iterable[list[View]], progress: Progress
) -> dict[str, torch.Tensor | float]:
    """Forward and backward of every micro-batch, then the optimiser and what the method moves; reads no data.

    ``saccade plan`` runs this on tensors without values to price a step.
    """
    train = plan.train
    lr = optim.learning_rate(plan.optim, progress.fraction)
    backbone_factor = optim.backbone_factor(plan.optim, progress.fraction)
    optim.set_rates(optimizer, lr, optim.weight_decay(plan.optim, progress.fraction), backbone_factor)

    logs: dict[str, torch.Tensor | float] = {}
    # Running statistics and centres take in what they see at once: a step that is left out must leave no trace there.
    before = [buffer.clone() for buffer in method.buffers()]
    optimizer.zero_grad(set_to_none=True)
    for views in batches:
        with runtime.autocast(plan.device, train.precision):
            output = method.step(views, progress)
        (output.loss / train.accumulate).backward()
        for name, value in {"loss": output.loss.detach(), **output.logs}.items():
            logs[name] = logs.get(name, 0.0) + value / train.accumulate

    parameters = [p for _, p in method.parameters_to_train()]
    runtime.average_gradients(parameters)
    method.before_update(progress)
    if backbone_factor == 0:  # frozen: neither clipping nor weight decay may count it
        for parameter in method.student_network.parameters():
            parameter.grad = None
    norm = optim.clip_gradients(parameters, plan.optim.clip_norm)
    logs["grad_norm"] = norm
    # A non-finite gradient must not reach the weights: the checkpoint on disk would inherit it.
    if bool(torch.isfinite(norm)):
        optimizer.step()
        method.after_update(progress)
    else:
        logs["loss"] = float("nan")
        for buffer, value in zip(method.buffers(), before, strict=True):
            buffer.copy_(value)
    return logs | {"lr": lr, "weight_decay": optimizer.param_groups[0]["weight_decay"]}


def train_step(
    plan: Plan, method: Method, optimizer: torch.optim.Optimizer, cache: ImageCache, step: int, fraction: float
) -> dict[str, torch.Tensor | float]:
    """One optimiser step: ``accumulate`` micro-batches of views, then ``update``; ``fraction`` of the run is done."""
    train, world = plan.train, runtime.world_size()
    images = train.images_per_step
    progress = Progress(step, train.steps, step * images / len(cache), train.steps * images / len(cache), fraction)
    # Stochastic depth draws from the global generator: seed it by step and rank (house rule 11).
    torch.manual_seed(seed_number(train.seed, "step", step, runtime.rank()))

    began, preparing = time.perf_counter(), 0.0
    indices = batch_indices(len(cache), step, images, train.seed)

    def prepared() -> Iterator[list[View]]:
        nonlocal preparing
        for micro in indices.reshape(train.accumulate, train.batch):
            mark = time.perf_counter()
            batch = cache.batch(micro[runtime.rank() :: world])
            views = make_views(batch, plan.views, plan.spec, seed=train.seed, step=step, device=plan.device)
            preparing += time.perf_counter() - mark
            if cache.streamed:
                read_ahead(plan, cache, step)
            yield views

    logs = update(plan, method, optimizer, prepared(), progress)
    return logs | {"epoch": progress.epoch, "wait": preparing / (time.perf_counter() - began)}


def fit(
    plan: Plan,
    method: Method,
    optimizer: torch.optim.Optimizer,
    cache: ImageCache,
    *,
    start: int,
    clock: Clock,
    evaluate: Evaluator,
    doctor: Doctor,
    console: Console,
) -> int:
    """Train from step ``start`` until the clock has run out. Returns the step reached (earlier if stopped).

    Parameters
    ----------
    start
        Step to begin at; earlier lines of metrics.jsonl are kept.
    clock
        Says how much of the run is done, and when to evaluate and to save.
    evaluate
        Measures effective rank, k-NN or validation; its time does not count as training.
    doctor
        Looks at every logged line.
    """
    train = plan.train
    metrics = Metrics(plan.run)
    board = _tensorboard(plan.run, start)
    last_saved = start if start else None
    before = metrics.continue_from(start) if runtime.rank() == 0 else 0.0
    images, seconds, mark = train.images_per_step, 0.0, time.perf_counter()
    first = runtime.rank() == 0
    skips = Skips(plan.run, start, write=first)
    with StopRequest() as stop, _closing(board):
        for step in itertools.count(start):
            # evaluate
            fraction = clock.fraction(step)
            figures: dict[str, float] = {}
            if clock.should_evaluate(step, fraction):
                seconds += time.perf_counter() - mark
                mark = time.perf_counter()
                figures = evaluate(step, fraction)
                clock.evaluated(time.perf_counter() - mark)
                mark = time.perf_counter()

            # save
            stop_reason = evaluate.stop_reason or doctor.stop_reason
            stopping = runtime.any_rank(stop.requested is not None or stop_reason is not None)
            asked = runtime.any_rank(stop.take_save())
            should_save = step > start and (clock.should_save(step, fraction) or asked)
            state = clock.state(fraction)
            if (should_save or stopping) and save_state(plan, method, optimizer, step, state, console):
                last_saved = step

            # stop
            if stopping or fraction >= 1:
                if figures and runtime.rank() == 0:
                    _write(metrics, board, {"step": step, **figures, "seconds": before + seconds}, console)
                if stop_reason:
                    console.say(stop_reason)
                elif stopping and fraction < 1:
                    why = stop.requested or "another process"
                    saved = "saved" if last_saved == step else f"the last checkpoint is of step {last_saved}"
                    console.say(f"stopped by {why} at step {step}; {saved}. Continue with --resume")
                break

            # step
            logs = train_step(plan, method, optimizer, cache, step, fraction)
            loss = float(logs["loss"])
            values = {k: float(v) for k, v in logs.items()}
            if not math.isfinite(loss):
                console.say(skips.record(step, ids_at(plan, cache, step), values, last_good=last_saved))
                if first:
                    keep_skipped(plan, method, step, fraction, console)
                continue

            # log
            now = time.perf_counter()
            if figures or (step + 1) % train.log_every == 0:
                values = {k: float(runtime.mean_over_ranks(torch.tensor(v))) for k, v in values.items()}
                seconds, mark = seconds + now - mark, now
                line = {"step": step, **values, **figures, "seconds": before + seconds}
                line["images_per_second"] = (step + 1 - start) * images / seconds
                if train.minutes:
                    line["fraction"] = fraction
                if runtime.rank() == 0:
                    _write(metrics, board, line, console)
                for diagnosis in doctor.look(line):
                    console.say(f"step {step}: {diagnosis.text()}")
            rate = (step + 1 - start) * images / max(1e-9, seconds + now - mark)
            console.progress(
                *clock.bar_position(step + 1, fraction), {"loss": loss, "images_per_second": rate, **figures}
            )
    return step


@contextlib.contextmanager
def _closing(board: Any) -> Iterator[None]:
    """Close the event file whatever happens; an incomplete file on a full disk is not an error."""
    try:
        yield
    finally:
        if board is not None:
            with contextlib.suppress(OSError):
                board.close()


def _tensorboard(run: Path, start: int) -> Any:
    if runtime.rank() != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, wanted only here

    return SummaryWriter(str(run / "tensorboard"), purge_step=start)


def _write(metrics: Metrics, board: Any, line: dict[str, float], console: Console) -> None:
    message = metrics.append(line)
    if message:
        console.say(message)
    try:
        for name, value in line.items():
            if name != "step":
                board.add_scalar(name, value, int(line["step"]))
    except OSError:  # metrics.jsonl is the record; the events are a convenience
        pass
