"""A benchmark whose child fails ends at once, with the child's error."""

import argparse
import importlib
import os
import time
from functools import partial
from types import ModuleType

import pytest


@pytest.fixture
def harness(benchmarks) -> ModuleType:
    return importlib.import_module("harness")


def test_abab_counts_the_images_of_both(harness):
    work = importlib.import_module("harness_work")
    ours, peer = harness.abab(partial(work.sleeper, 0.001, 10), partial(work.sleeper, 0.01, 10), rounds=3)
    assert 1.5 < ours / peer < 12


def test_a_child_that_raises_ends_the_parent_with_its_traceback(harness):
    work = importlib.import_module("harness_work")
    start = time.monotonic()
    with pytest.raises(harness.ChildFailedError, match=r"(?s)peer failed:.*ValueError: wrong shape") as error:
        harness.abab(partial(work.sleeper, 0.001, 1), work.raising, rounds=1)
    assert "harness_work.py" in str(error.value)
    assert time.monotonic() - start < 60


def test_a_child_that_raises_at_work_ends_the_parent(harness):
    work = importlib.import_module("harness_work")
    with pytest.raises(harness.ChildFailedError, match=r"(?s)ours failed:.*RuntimeError: out of images"):
        harness.abab(work.raising_later, partial(work.sleeper, 0.001, 1), rounds=2)


def test_a_child_that_dies_ends_the_parent_with_its_exit_code(harness):
    work = importlib.import_module("harness_work")
    with pytest.raises(harness.ChildFailedError, match="dying died with exit code 7"):
        harness.run_in_child(work.dying)


def test_one_of_several_that_fails_ends_the_others(harness):
    work = importlib.import_module("harness_work")
    start = time.monotonic()
    with pytest.raises(harness.ChildFailedError, match="second failed"):
        harness.side_by_side({"first": partial(time.sleep, 300), "second": work.raising})
    assert time.monotonic() - start < 60


def test_results_come_back_by_name(harness):
    pids = harness.side_by_side({"first": os.getpid, "second": os.getpid})
    assert list(pids) == ["first", "second"] and len({*pids.values(), os.getpid()}) == 3
    assert harness.run_in_child(max, 2, 5) == 5


def test_smoke_sets_options_that_exist(harness):
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    assert harness.parse(parser, {"rounds": 1}, ["--smoke"]).rounds == 1
    with pytest.raises(KeyError, match="round"):
        harness.parse(argparse.ArgumentParser(), {"round": 1}, ["--smoke"])


def test_a_result_has_both_sides(harness, capsys):
    options = argparse.Namespace(json=False)
    harness.finish(options, {"ours": 2, "peer": 1, "ratio": 2.0}, ["twice as fast"])
    assert capsys.readouterr().out.splitlines() == ["twice as fast", '{"ours": 2, "peer": 1, "ratio": 2.0}']
    with pytest.raises(KeyError, match="ratio"):
        harness.finish(options, {"ours": 2, "peer": 1})


def test_slope_of_a_square_is_two(harness):
    assert harness.loglog_slope({n: float(n * n) for n in (4, 16, 64)}) == pytest.approx(2)
    assert harness.loglog_slope({4: 1.0}) is None
