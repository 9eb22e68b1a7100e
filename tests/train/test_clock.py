"""The clock of a run: ends in time, complete schedules on a machine that becomes busy, the same after a resume."""

from __future__ import annotations

import json
import time

import pytest

from saccade import pretrain, resume
from saccade.train.clock import CLOSING_SECONDS, TimeClock


class Now:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(clock: TimeClock, now: Now, seconds_of_step, *, evaluation=1.0, step=0, limit=None):
    """Steps until the end, or ``limit``: fractions seen, steps evaluated and the last state."""
    fractions, evaluated, state = [], [], {}
    while limit is None or len(fractions) < limit:
        fraction = clock.fraction(step)
        if clock.should_evaluate(step, fraction):
            now.seconds += evaluation
            clock.evaluated(evaluation)
            evaluated.append(fraction)
        clock.should_save(step, fraction)
        state = clock.state(fraction)
        if fraction >= 1:
            break
        fractions.append(fraction)
        now.seconds += seconds_of_step(now.seconds)
        step += 1
    return fractions, evaluated, state


@pytest.mark.parametrize("evaluation", [0.1, 1.0, 5.0])
def test_a_run_ends_in_time_whatever_its_steps_cost(evaluation):
    for seconds_of_step in (lambda _: 0.5, lambda t: 0.2 if t < 60 else 2.0, lambda t: 2.0 if t < 60 else 0.2):
        now = Now()
        clock = TimeClock(180.0, now=now)
        now.seconds = 12.0  # start-up
        fractions, evaluated, _ = run(clock, now, seconds_of_step, evaluation=evaluation)
        assert fractions[0] == 0 and fractions == sorted(fractions) and 0.95 < fractions[-1] < 1
        ends = now.seconds + CLOSING_SECONDS
        assert 180 * 0.9 <= ends <= 180 * 1.1
        assert len(evaluated) * evaluation <= 0.2 * 180 and len(evaluated) >= 3 and evaluated[-1] == 1


def test_a_resumed_run_takes_its_schedule_up_where_it_was():
    now = Now()
    clock = TimeClock(100.0, now=now)
    *_, state = run(clock, now, lambda _: 1.0, limit=40)
    now.seconds += 1000  # interrupted
    again = TimeClock(now.seconds + state["remaining"], json.loads(json.dumps(state)), now=now)
    began = now.seconds
    assert again.fraction(40) == pytest.approx(state["fraction"])
    fractions, *_ = run(again, now, lambda _: 1.0, step=40)
    assert now.seconds - began + CLOSING_SECONDS == pytest.approx(state["remaining"], abs=4)
    assert fractions[-1] > 0.95


DATA = "synthetic:tissue?n=64&size=32"
SMALL = {"train.batch": 8, "model.size_px": 32, "dino.out_dim": 32}


def test_minutes_are_kept_and_the_steps_written_are_those_done(tmp_path):
    began = time.monotonic()
    folder = pretrain(
        DATA,
        out=tmp_path / "run",
        method="dino",
        backbone="resnet10_w8",
        settings=SMALL | {"train.minutes": 0.3},
        started=began,
    )
    seconds = time.monotonic() - began
    assert 0.75 * 18 <= seconds <= 1.25 * 18, seconds
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line["fraction"] for line in lines if "fraction" in line]
    assert logged == sorted(logged) and logged[-1] > 0.8
    config = (folder / "config.yaml").read_text()
    assert f"steps: {lines[-1]['step']}\n" in config
    # Nothing is left to do.
    steps = lines[-1]["step"]
    resume(folder)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == steps
