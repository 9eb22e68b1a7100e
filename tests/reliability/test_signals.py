"""Interrupted runs: what is saved, and with which exit code they end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from saccade import runtime
from saccade.base import run_folder
from saccade.errors import StorageError, UsageError
from saccade.train import checkpoint


def start(out):
    small = ["train.batch=8", "train.log_every=1", "train.save_every=100000", "dino.out_dim=16", "dino.head_hidden=16"]
    pairs = [word for pair in [*small, "views.local_count=2"] for word in ("--set", pair)]
    words = ["pretrain", "synthetic:tissue?n=24&size=16", "--out", str(out), "--steps", "100000", "--size", "16"]
    command = [sys.executable, "-m", "saccade", *words, "--backbone", "vit_micro_patch8_w8", *pairs]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_exits_with_the_signal(tmp_path, number, code):
    out = tmp_path / "run"
    process = start(out)
    metrics = out / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(run_folder.read_metrics(metrics)) > 2, process)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: checkpoint.available(out), process)
    first, lines = checkpoint.available(out)[0], len(run_folder.read_metrics(metrics))
    wait_until(lambda: len(run_folder.read_metrics(metrics)) > lines + 2, process)  # training continues
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert "stopped by" in stderr and "--resume" in stderr and "next:" not in stdout
    assert checkpoint.available(out)[-1] > first


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK"),
    ],
)
def test_variables_left_over_from_torchrun_are_named(monkeypatch, variables, named):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=named), runtime.processes(runtime.pick_device("cpu")):
        pass


@pytest.mark.parametrize("rank", ["0", "1"])
def test_all_variables_left_over_from_torchrun_are_named_after_a_timeout(monkeypatch, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setitem(runtime.RENDEZVOUS_S, "alone", 1)
    values = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(UsageError, match="did not come") as caught, runtime.processes(runtime.pick_device("cpu")):
        pass
    assert time.monotonic() - began < 60
    assert all(f"{name}={value}" in str(caught.value) for name, value in values.items())
    assert "unset WORLD_SIZE RANK MASTER_ADDR MASTER_PORT" in str(caught.value)


@pytest.mark.parametrize("locked", ["run", "checkpoints"])
def test_a_resume_in_a_read_only_folder_fails_before_work(tmp_path, monkeypatch, locked):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    real = tempfile.mkdtemp

    def refuse(*, prefix, dir):  # the tests may run as root, whom no permission stops
        if dir.name == locked:
            raise PermissionError(13, os.strerror(13))
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StorageError, match=locked):
        run_folder.prepare(run, resume=True)


def test_a_checkpoint_that_cannot_be_written_names_path_and_space_and_what_is_left(tmp_path, monkeypatch):
    state = {"step": 1, "method": {}, "optimizer": {}}

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 2995264 vs 2995160")

    real = checkpoint.torch.save
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(StorageError, match="MiB are free") as caught:
        checkpoint.save(tmp_path, 1, state, keep=2)
    assert str(tmp_path) in str(caught.value) and "unexpected pos" not in str(caught.value)
    assert "no earlier checkpoint" in str(caught.value) and "intact" not in str(caught.value)
    monkeypatch.setattr(checkpoint.torch, "save", real)
    checkpoint.save(tmp_path, 1, state, keep=2)
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(StorageError, match="checkpoint of step 1 is still there"):
        checkpoint.save(tmp_path, 2, state | {"step": 2}, keep=2)
