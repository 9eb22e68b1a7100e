"""Processes that die between two file operations, full disks, kills of real runs, and the death of one of two ranks."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from killed_runs import DATA, SMALL, train_or_resume
from saccade.base import files, run_folder
from saccade.errors import StorageError
from saccade.train import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
OPERATIONS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
DIED, KILLS, DEATHS, OFFSETS = 9, 100, 10, 10
STEPS = 12


def in_child(work) -> int:
    """The exit code of a forked process that does the work; 1 where it raises."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(number: int) -> None:
    """End this process in front of its n-th file operation, as a power cut does."""
    left = [number]

    def dying(real):
        def operation(*arguments, **options):
            if left[0] == 0:
                os._exit(DIED)
            left[0] -= 1
            return real(*arguments, **options)

        return operation

    for name in OPERATIONS:
        setattr(os, name, dying(getattr(os, name)))
    files._exchange = dying(files._exchange)


def method_of(step: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(step)
    method = torch.nn.Linear(64, 64)
    return method, torch.optim.AdamW(method.parameters())


def state_of(step: int) -> dict:
    method, optimizer = method_of(step)
    method(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}


def new_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "env.json").write_text(json.dumps({"id": "a" * 16}))
    return folder


@pytest.mark.parametrize("name", ["step", checkpoint.BEST])
def test_a_crash_at_every_file_operation_of_a_save_leaves_a_whole_state(tmp_path, name):
    # Not in the child: torch computes no gradients after a fork of a process whose autograd has threads.
    states = {step: state_of(step) for step in (1, 2)}

    def save(run, step):
        if name == "step":
            checkpoint.save(run, step, states[step], keep=2)
        else:
            checkpoint.save_named(run, name, states[step])

    for number in range(100):
        run = new_run(tmp_path / f"run{number}")
        save(run, 1)

        def crash(run=run, number=number):
            die_at(number)
            save(run, 2)

        code = in_child(crash)
        assert code in (0, DIED)
        for folder in (run, run / "checkpoints"):
            files.remove_leftovers(folder)
        if name == "step":
            step, _, messages = checkpoint.restore(run, *method_of(0))
            assert step in (1, 2) and not messages
        else:
            state = checkpoint.load_named(run, name)
            assert state is not None and state["step"] in (1, 2)
        if code == 0:
            break
    assert number > 3 and code == 0


def test_a_disk_that_is_full_at_any_offset_leaves_the_last_checkpoint(tmp_path):
    run = new_run(tmp_path / "run")
    checkpoint.save(run, 1, state_of(1), keep=2)
    later = state_of(2)
    size = (checkpoint.folder_of(run, 1) / checkpoint.FILE).stat().st_size
    for number in range(OFFSETS):

        def save(offset=size * number // OFFSETS):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))
            try:
                checkpoint.save(run, 2, later, keep=2)
            except StorageError as error:
                text = str(error)
                os._exit(0 if "MiB are free" in text and "step 1 is still there" in text and str(run) in text else 2)
            os._exit(3)

        assert in_child(save) == 0, number
        assert checkpoint.available(run) == [1] and checkpoint.restore(run, *method_of(0))[0] == 1
        assert not list((run / "checkpoints").glob(f"{files.TEMPORARY}*"))


# --- real runs ------------------------------------------------------------------------------------


def losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    lines = run_folder.read_metrics(path) if path.exists() else []
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_100_kills_lose_nothing(tmp_path):
    """Each kill comes at a random moment after the process has begun to train; the run then goes on from there."""
    context, draw, steps, kills = multiprocessing.get_context("forkserver"), random.Random(0), 200, 0
    context.set_forkserver_preload(["killed_runs", "saccade.train.pretrain"])

    def start(out):
        process = context.Process(target=train_or_resume, args=(str(out), steps))
        process.start()
        return process

    whole, run, rounds = tmp_path / "whole", tmp_path / "run", 0
    start(whole).join()
    while kills < KILLS:
        if run.exists() and not (run / "config.yaml").exists():  # killed before there was anything to resume
            shutil.rmtree(run)
        before = max(losses(run), default=-1)
        process = start(run)
        while process.is_alive() and max(losses(run), default=-1) <= before:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.1)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            pytest.fail(f"the run ended with exit code {process.exitcode}")
        if max(losses(run), default=-1) == steps - 1:
            start(run).join()
            assert losses(run) == losses(whole)
            rounds += 1
            run = tmp_path / f"run{rounds}"
    start(run).join()
    assert losses(run) == losses(whole) and set(losses(whole)) == set(range(steps))
    print(f"{kills} kills, {rounds + 1} runs of {steps} steps, 0 losses differ")


@pytest.mark.slow
def test_the_death_of_one_of_two_ranks_ends_the_run_and_it_is_resumed(tmp_path):
    pairs = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]

    def words(run, *more):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
        program = ["-m", "saccade", "pretrain", DATA, "--out", str(run), "--steps", str(STEPS), *pairs, *more]
        return [sys.executable, *launcher, "--rdzv-endpoint=127.0.0.1:0", *program, "--backbone", "vit_micro_patch8_w8"]

    quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words(tmp_path / "whole"), check=True, timeout=300, **quiet)
    for number in range(DEATHS):
        run = tmp_path / f"run{number}"
        process = subprocess.Popen(words(run), **quiet)
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        while process.poll() is None and max(losses(run), default=-1) < number:
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if len(children) == 2:
            os.kill(int(children[number % 2]), signal.SIGKILL)
        process.wait(timeout=120)
        if max(losses(run)) < STEPS - 1:
            assert process.returncode != 0
        subprocess.run(words(run, "--resume"), check=True, timeout=300, **quiet)
        assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
