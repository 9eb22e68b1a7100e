"""What every benchmark shares: options, work in child processes, A B A B timing, and the result as the last line.

A child process that raises or dies ends its parent at once, with the child's own traceback. Children come from a
fork server that has imported torch already, so that starting one takes milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

TEMPORARY = object()
T = TypeVar("T")
Work = Callable[[], int]  # does some work and returns the number of images
PRELOAD = ["torch", "timm", "lightly.loss", "lightly.transforms", "lightly.models.modules", "saccade.api"]
CONTEXT = multiprocessing.get_context("forkserver")


class ChildFailedError(RuntimeError):
    """A child process raised an exception or died; the message holds its traceback or its exit code."""


# --- options and result -------------------------------------------------------------------------


def parse(
    parser: argparse.ArgumentParser, smoke: dict[str, Any], argv: Sequence[str] | None, required: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse ``argv`` with ``--json`` and ``--smoke`` added.

    Parameters
    ----------
    parser
        The script's own options.
    smoke
        Option values that make the script end within seconds; ``--smoke`` sets them. ``TEMPORARY`` stands for a folder
        that is removed at the end.
    argv
        Words of the command line; None takes those of the process.
    required
        Options that may be missing under ``--smoke`` only.
    """
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that the script runs")
    options = parser.parse_args(argv)
    if options.smoke:
        for name, value in smoke.items():
            if not hasattr(options, name):
                raise KeyError(f"--smoke sets the option {name!r}, which this script does not have")
            if value is TEMPORARY:
                options.temporary = tempfile.TemporaryDirectory()  # removed with the options
                value = Path(options.temporary.name)
            setattr(options, name, value)
    elif missing := [name for name in required if getattr(options, name) is None]:
        parser.error(f"missing: {', '.join(missing)}")
    return options


def finish(options: argparse.Namespace, result: dict[str, Any], lines: Sequence[str] = ()) -> None:
    """Print ``lines`` for people, unless ``--json``, and ``result`` as one JSON object on the last line."""
    missing = {"ours", "peer", "ratio"} - result.keys()
    if missing:
        raise KeyError(f"the result lacks {', '.join(sorted(missing))}")
    if not options.json:
        for line in lines:
            print(line)
    print(json.dumps(result), flush=True)


# --- child processes ----------------------------------------------------------------------------


def _serve(function: Callable[..., Any], arguments: tuple[Any, ...], core: int | None, pipe: Connection) -> None:
    """Run in the child: ``function`` once, or, where it returns a Work to repeat, that whenever the parent asks."""
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def _serve_rounds(setup: Callable[[], Work], pipe: Connection) -> None:
    """Run in the child: time one round of work for each request; False ends the process."""
    try:
        work = setup()
        pipe.send((True, "ready"))
        while pipe.recv():
            start = time.perf_counter()
            images = work()
            pipe.send((True, (images, time.perf_counter() - start)))
    except EOFError:  # the parent died
        return
    except BaseException:
        pipe.send((False, traceback.format_exc()))


class Child:
    """A child process and the pipe to it."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], name: str):
        CONTEXT.set_forkserver_preload(PRELOAD)
        self.name = name
        self.pipe, child_end = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=target, args=(*arguments, child_end), name=name)
        self.process.start()
        child_end.close()

    def receive(self) -> Any:
        """Wait for the next message; raise ``ChildFailedError`` where the child raised or died."""
        wait([self.pipe, self.process.sentinel])
        try:
            if not self.pipe.poll():
                raise EOFError
            succeeded, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise ChildFailedError(f"{self.name} died with exit code {self.process.exitcode}") from None
        if not succeeded:
            raise ChildFailedError(f"{self.name} failed:\n{value}")
        return value

    def close(self) -> None:
        """End the child, if it still runs."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def run_in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Call an importable function in a process of its own and return its result."""
    child = Child(_serve, (function, arguments, None), function.__name__)
    try:
        result: T = child.receive()
        child.process.join()
        return result
    finally:
        child.close()


def side_by_side(functions: dict[str, Callable[[], T]]) -> dict[str, T]:
    """Call several functions at the same time, each in a process on a core of its own; the results by name."""
    cores = sorted(os.sched_getaffinity(0))
    children = {
        name: Child(_serve, (function, (), cores[number % len(cores)]), name)
        for number, (name, function) in enumerate(functions.items())
    }
    results: dict[str, T] = {}
    try:
        while len(results) < len(children):
            waiting = [child for name, child in children.items() if name not in results]
            ready = wait([handle for child in waiting for handle in (child.pipe, child.process.sentinel)])
            for child in waiting:
                if child.pipe in ready or child.process.sentinel in ready:
                    results[child.name] = child.receive()
    finally:
        for child in children.values():
            child.close()
    return {name: results[name] for name in functions}


def abab(ours: Callable[[], Work], peer: Callable[[], Work], rounds: int, warm_up: int = 1) -> tuple[float, float]:
    """Images a second of both, in turns (A B A B), each in a process of its own that is idle while the other works.

    Parameters
    ----------
    ours, peer
        Importable functions, or partials of such, that get everything ready and return the work.
    rounds
        Counted rounds; the median is returned.
    warm_up
        Rounds before those, not counted.
    """
    children: list[Child] = []
    rates: tuple[list[float], list[float]] = ([], [])
    try:
        for name, setup in (("ours", ours), ("peer", peer)):
            children.append(Child(_serve_rounds, (setup,), name))
            children[-1].receive()
        for turn in range(warm_up + rounds):
            for child, values in zip(children, rates):
                child.pipe.send(True)
                images, seconds = child.receive()
                if turn >= warm_up:
                    values.append(images / seconds)
        for child in children:
            child.pipe.send(False)
            child.process.join()
    finally:
        for child in children:
            child.close()
    return statistics.median(rates[0]), statistics.median(rates[1])


# --- figures ------------------------------------------------------------------------------------


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def loglog_slope(points: dict[int, float]) -> float | None:
    """Least-squares slope of log(value) against log(number); None for fewer than two points."""
    if len(points) < 2:
        return None
    logs = [(math.log(number), math.log(max(value, 0.1))) for number, value in points.items()]
    mean_x, mean_y = (sum(axis) / len(logs) for axis in zip(*logs))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
