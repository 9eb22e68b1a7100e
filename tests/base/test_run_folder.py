"""The run folder: nothing half-written, nothing lost, nothing overwritten."""

import json
import math
import os

import numpy as np
import pytest

from saccade.base import run_folder
from saccade.errors import StorageError, UsageError


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "data.json"
    run_folder.write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        run_folder.write_json(path, {"a": 2})
    assert "MiB are free" in str(caught.value)
    assert run_folder.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_survive_a_torn_line_and_continue(tmp_path):
    metrics = run_folder.Metrics(tmp_path)
    for step in range(6):
        assert metrics.append({"step": step, "seconds": float(step)}) is None
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "sec')
    assert [line["step"] for line in run_folder.read_metrics(metrics.path)] == [0, 1, 2, 3, 4, 5]
    assert metrics.continue_from(4) == 3.0
    assert [line["step"] for line in run_folder.read_metrics(metrics.path)] == [0, 1, 2, 3]


def test_metrics_report_a_refusing_disk_once(tmp_path):
    metrics = run_folder.Metrics(tmp_path)
    metrics.path.symlink_to("/dev/full")
    assert "training goes on" in metrics.append({"step": 0})
    assert metrics.append({"step": 1}) is None


def test_prepare_refuses_to_overwrite(tmp_path):
    run = tmp_path / "run"
    run_folder.prepare(run, resume=False)
    (run / "config.yaml").write_text("{}")
    with pytest.raises(UsageError, match="--resume"):
        run_folder.prepare(run, resume=False)
    run_folder.prepare(run, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not an empty folder"):
        run_folder.prepare(tmp_path / "full", resume=False)
    with pytest.raises(UsageError, match="no run to resume"):
        run_folder.prepare(tmp_path / "nowhere", resume=True)


def test_json_has_null_for_what_is_no_number(tmp_path):
    value = {"a": [1.5, math.nan], "b": {"c": math.inf, "d": (np.float64("nan"), 2, None, "x", True)}}
    run_folder.write_json(tmp_path / "a.json", value)
    assert "NaN" not in (tmp_path / "a.json").read_text() and "Infinity" not in (tmp_path / "a.json").read_text()
    found = run_folder.read_json(tmp_path / "a.json")
    assert found == {"a": [1.5, None], "b": {"c": None, "d": [None, 2, None, "x", True]}}


def test_read_json_errors(tmp_path):
    with pytest.raises(UsageError, match="not found"):
        run_folder.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UsageError, match="not valid JSON"):
        run_folder.read_json(tmp_path / "bad.json")
