"""Training as a user relies on it: exact resume, clean stops, full disks, two processes as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import saccade
from saccade.api import Quiet, compare, embed, finetune, pretrain, resume
from saccade.base import config, run_folder
from saccade.base.locks import lock_file, lock_folder
from saccade.data.cache.image_cache import batch_indices
from saccade.errors import DataError, NonFiniteLoss, OutputInUse, SaccadeError, StorageError, UsageError
from saccade.train import checkpoint, loop
from saccade.train import replay as replaying
from saccade.train.health import effective_rank, require_finite

DATA = "synthetic:tissue?n=48&size=32"
BACKBONE = "vit_micro_patch8_w32"
SMALL = {
    "model.size_px": 32,
    "views.local_count": 2,
    "train.batch": 8,
    "train.log_every": 1,
    "train.save_every": 4,
    "dino.out_dim": 32,
    "dino.head_hidden": 32,
    "dino.bottleneck": 16,
    "train.precision": "fp32",
}
STEPS = 12


def losses(run: Path) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in run_folder.read_metrics(run / "metrics.jsonl") if "loss" in m}


def small_run(out: Path, backbone: str = BACKBONE, **settings) -> Path:
    named = SMALL | {"train.steps": STEPS} | {k.replace("__", "."): v for k, v in settings.items()}
    return pretrain(DATA, out=out, backbone=backbone, settings=named)


def command(out: Path, *more: str) -> list[str]:
    pairs = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "saccade", "pretrain", DATA, "--out", str(out), "--steps", str(STEPS),
            "--backbone", BACKBONE, *pairs, *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, to compare with."""
    return small_run(tmp_path_factory.mktemp("whole") / "run")


def test_a_run_leaves_every_file(whole):
    for name in (
        "config.yaml",
        "env.json",
        "data.json",
        "metrics.jsonl",
        "report.html",
        "model/model.safetensors",
    ):
        assert (whole / name).stat().st_size > 0, name
    assert checkpoint.available(whole) == [8, 12]
    last = run_folder.read_metrics(whole / "metrics.jsonl")[-1]
    assert last["step"] == STEPS and last["rank"] >= 1
    assert set(losses(whole)) == set(range(STEPS))
    data = run_folder.read_json(whole / "data.json")
    assert data["used"] == len(data["files"]) and all(len(f["sha256"]) == 64 for f in data["files"])


def test_same_seed_same_losses(whole, tmp_path):
    assert losses(small_run(tmp_path / "again")) == losses(whole)


@pytest.mark.parametrize("at", [1, 4, 5, 8, 11])
def test_killed_anywhere_resumes_bit_for_bit(whole, tmp_path, monkeypatch, at):
    """The process disappears in the middle of step ``at``: nothing is flushed, saved or closed."""
    real = loop.train_step

    class Killed(BaseException):
        pass

    def dies(plan, method, optimizer, cache, step, fraction):
        if step == at:
            raise Killed
        return real(plan, method, optimizer, cache, step, fraction)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(Killed):
        small_run(tmp_path / "run")
    monkeypatch.setattr(loop, "train_step", real)
    resume(tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and max(losses(run), default=-1) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run never reached step {step}; it ended with {process.poll()}")


def test_kill_9_of_a_real_process_resumes_bit_for_bit(whole, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(command(run), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for_step(run, 5, process)
    process.kill()
    process.wait()
    resume(run)
    found = losses(run)
    assert set(found) == set(range(STEPS))
    assert found == pytest.approx(losses(whole), rel=1e-5)  # thread counts may differ between processes


def test_sigterm_saves_and_ends_cleanly(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(command(run, "--set", "train.save_every=1000"), stderr=subprocess.PIPE, text=True)
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in stderr and "--resume" in stderr
    assert checkpoint.available(run)
    resume(run)
    assert set(losses(run)) == set(range(STEPS))


def test_damaged_newest_checkpoint_falls_back(tmp_path):
    run = small_run(tmp_path / "run")
    newest = checkpoint.folder_of(run, 12) / checkpoint.FILE
    newest.write_bytes(newest.read_bytes()[:1000])
    console = Quiet()
    resume(run, console=console)
    assert any("step 12 is damaged" in m for m in console.messages)
    assert any("continuing from step 8" in m for m in console.messages)
    assert set(losses(run)) == set(range(STEPS))


def test_a_run_folder_has_one_writer(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(out, "--steps", "2000"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for_step(out, 1, process)
        with pytest.raises(OutputInUse, match=f"process {process.pid} on "):
            resume(out)
        with pytest.raises(OutputInUse, match=f"process {process.pid} on "):
            small_run(out)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "write",
    [
        lambda out: finetune("random:vit_micro_patch8", "synthetic:none", out=out),
        lambda out: embed("nowhere", "nowhere", out=out / "x.parquet"),
        lambda out: compare("nowhere", out=out, backbones=[BACKBONE, "resnet10_w8"], sizes=[4]),
    ],
    ids=["finetune", "embed", "compare"],
)
def test_what_another_writes_is_refused_before_anything_is_read(tmp_path, write):
    with lock_folder(tmp_path), lock_file(tmp_path / "x.parquet"), pytest.raises(OutputInUse):
        write(tmp_path)


def test_full_disk_is_survived_and_said(tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def full_once(number):
        calls.append(number)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(number)

    console = Quiet()
    real_save = checkpoint.save

    def save(run, step, state, keep):
        monkeypatch.setattr(os, "fsync", full_once if step == 4 else real)
        return real_save(run, step, state, keep)

    monkeypatch.setattr(checkpoint, "save", save)
    run = pretrain(
        DATA,
        out=tmp_path / "run",
        backbone=BACKBONE,
        settings=SMALL | {"train.steps": STEPS},
        console=console,
    )
    assert any("step 4 could not be written" in m and "training goes on" in m for m in console.messages)
    assert checkpoint.available(run) == [8, 12]
    assert not list((run / "checkpoints").glob(".*"))


def poison(monkeypatch, *steps: int) -> None:
    """The first image of these steps is not a number."""
    real = loop.make_views

    def poisoned(batch, config, spec, *, seed, step, device):
        views = real(batch, config, spec, seed=seed, step=step, device=device)
        if step in steps:
            views[0].pixels[0] = float("nan")
        return views

    monkeypatch.setattr(loop, "make_views", poisoned)
    monkeypatch.setattr(replaying, "make_views", poisoned)


@pytest.mark.parametrize("backbone", [BACKBONE, "resnet10_w8"])
def test_one_step_that_is_not_finite_is_left_out(tmp_path, monkeypatch, backbone):
    poison(monkeypatch, 6)
    console = Quiet()
    run = pretrain(DATA, out=tmp_path / "run", backbone=backbone, settings=SMALL | {"train.steps": 12}, console=console)
    assert any("skipped step 6" in m and "--replay" in m for m in console.messages)
    found = losses(run)
    assert set(found) == set(range(12)) - {6} and np.isfinite(list(found.values())).all()
    state = torch.load(checkpoint.folder_of(run, 12) / checkpoint.FILE, weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["method"].values() if value.is_floating_point())
    line = json.loads((run / "skipped.jsonl").read_text())
    assert line["step"] == 6 and "loss" in line["not_finite"] and len(set(line["images"])) == 8
    again = saccade.replay(run)
    assert again["bad_pixels"] == [line["images"][0]] and again["fp32"]["bad_vectors"] == [line["images"][0]]
    assert not np.isfinite(again["fp32"]["loss"])
    assert line["images"][0] in replaying.to_text(again)


def test_a_second_one_soon_after_stops_with_cause_and_way_back(tmp_path, monkeypatch):
    poison(monkeypatch, 5, 6)
    with pytest.raises(NonFiniteLoss, match="step 6") as caught:
        small_run(tmp_path / "run")
    assert "step 4" in str(caught.value) and "hint" in str(caught.value)
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()


def test_a_step_that_was_left_out_is_left_out_again_after_a_crash(tmp_path, monkeypatch):
    """skipped.jsonl knows of it already; that is no second one."""
    poison(monkeypatch, 6)
    run, real = tmp_path / "run", loop.train_step

    def dies(plan, method, optimizer, cache, step, fraction):
        if step == 7:
            raise KeyboardInterrupt
        return real(plan, method, optimizer, cache, step, fraction)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        small_run(run)
    monkeypatch.setattr(loop, "train_step", real)
    resume(run)
    assert set(losses(run)) == set(range(STEPS)) - {6}
    assert [json.loads(line)["step"] for line in (run / "skipped.jsonl").read_text().splitlines()] == [6]


@pytest.mark.parametrize(("images", "batch"), [(100, 64), (48, 8), (5, 5), (7, 3), (3, 8)])
def test_no_batch_holds_an_image_twice_and_all_images_are_seen(images, batch):
    seen = [batch_indices(images, step, batch, seed=0) for step in range(200)]
    assert all(len(step) == batch for step in seen)
    assert all(np.bincount(step).max() <= (1 if batch <= images else -(-batch // images) + 1) for step in seen)
    counts = np.bincount(np.concatenate(seen), minlength=images)
    assert counts.min() > 0.7 * counts.mean()
    assert np.array_equal(batch_indices(images, 57, batch, seed=0), seen[57])


def test_a_run_without_skipped_steps_has_nothing_to_replay(tmp_path):
    run = small_run(tmp_path / "run", train__steps=2)
    with pytest.raises(UsageError, match="skipped no step"):
        saccade.replay(run)


def test_require_finite_names_what_broke():
    require_finite(1.0, step=3, logs={"loss": 1.0}, last_good=None)
    with pytest.raises(NonFiniteLoss, match="no checkpoint"):
        require_finite(float("nan"), step=3, logs={"grad_norm": float("inf")}, last_good=None)


def test_accumulation_equals_a_larger_batch(tmp_path):
    """But for batch norm, KoLeo and the coding rate, which compare the images of a micro-batch."""
    plain = {"dino__koleo": 0.0, "dino__coding_rate": 0.0}
    one = small_run(tmp_path / "one", train__steps=4, train__batch=16, **plain)
    two = small_run(tmp_path / "two", train__steps=4, train__batch=8, train__accumulate=2, **plain)
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)


@pytest.mark.slow
def test_two_processes_equal_one(whole, tmp_path):
    run = tmp_path / "run"
    words = command(run)
    launcher = [words[0], "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0", *words[1:]]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(launcher, check=True, timeout=240, env=environment, stdout=subprocess.PIPE, text=True).stdout
    assert told.count("next: ") == 1
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)


def test_changed_images_are_not_resumed_silently(tmp_path):
    run = small_run(tmp_path / "run", train__steps=2)
    data = json.loads((run / "data.json").read_text())
    data["files"][0]["sha256"] = "0" * 64
    (run / "data.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="not the ones this run began with"):
        resume(run)


def test_length_given_twice(tmp_path):
    with pytest.raises(UsageError, match="steps and epochs"):
        small_run(tmp_path / "run", train__epochs=3.0)


def test_minutes_become_steps(tmp_path):
    run = pretrain(DATA, out=tmp_path / "run", backbone=BACKBONE, settings=SMALL | {"train.minutes": 0.02})
    assert max(losses(run)) >= 0


def test_effective_rank():
    assert effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-3)
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1, rel=1e-3)


def test_collapse_is_said_while_it_happens(tmp_path):
    console = Quiet()
    settings = SMALL | {"train.steps": 6, "dino.teacher_temp": 50.0, "dino.student_temp": 50.0}
    pretrain(DATA, out=tmp_path / "flat", backbone=BACKBONE, settings=settings, console=console)
    said = [m for m in console.messages if "uniform collapse" in m]
    assert len(said) == 1 and "ln 32 = 3.466" in said[0] and "teacher_temp" in said[0]


# Wide enough that one repair is enough.
WIDE = "vit_micro_patch8"
FLAT = SMALL | {
    "train.steps": 80,
    "dino.teacher_temp": 50.0,
    "dino.teacher_temp_start": 50.0,
    "optim.lr": 3e-3,
    "dino.koleo": 0.0,
    "dino.coding_rate": 0.0,
}


def test_a_run_that_learns_nothing_can_end(tmp_path):
    run = pretrain(DATA, out=tmp_path / "run", backbone=WIDE, settings=FLAT | {"train.on_collapse": "stop"})
    assert max(losses(run)) < 79 and not (run / "repairs.jsonl").exists()
    assert (run / "model" / "model.safetensors").exists()
    assert [one.name for one in saccade.examine(run)] == ["uniform collapse"]


def test_a_run_that_learns_nothing_can_be_repaired(tmp_path):
    console = Quiet()
    settings = FLAT | {"train.on_collapse": "repair"}
    run = pretrain(DATA, out=tmp_path / "run", backbone=WIDE, settings=settings, console=console)
    first = json.loads((run / "repairs.jsonl").read_text().splitlines()[0])
    assert first["name"] == "uniform collapse" and first["change"]["dino.teacher_temp"] == pytest.approx(0.04)
    assert any("back to step" in message for message in console.messages)
    assert config.load(run / "config.yaml")["dino"]["teacher_temp"] == pytest.approx(0.04)
    assert set(losses(run)) == set(range(80))


# --- ways out of trouble, and settings that cannot be meant ----------------------------------------


def test_resume_takes_what_it_may_and_names_what_it_may_not(whole, tmp_path):
    run = small_run(tmp_path / "run", train__steps=4)
    again = {"train.steps": 4, "model.size_px": 32}  # what it was started with may be repeated
    resume(run, data=DATA, settings=again | {"optim.lr": 1e-5, "train.keep": 1})
    stored = config.load(run / "config.yaml")
    assert stored["optim"]["lr"] == 1e-5 and stored["train"]["keep"] == 1
    with pytest.raises(UsageError, match="settings the run has") as caught:
        resume(run, settings={"dino.out_dim": 64, "optim.lr": 1e-5})
    assert "dino.out_dim" in str(caught.value) and "optim.lr" in (caught.value.hint or "")


def test_foreign_bytes_and_copies_among_checkpoints(tmp_path):
    run = small_run(tmp_path / "run")
    (run / "checkpoints" / "step-000012" / "state.pt").write_bytes(b"this was never a checkpoint" * 50)
    (run / "checkpoints" / "step-000008-copy").mkdir()
    state, messages = checkpoint.load_newest(run)
    assert state["step"] == 8 and "step 12 is damaged" in messages[0]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_written_after_a_fall_back_stays(tmp_path, keep):
    """Damaged later checkpoints are not newer than the one that was just written."""
    for step in (4, 8, 12):
        checkpoint.save(tmp_path, step, {"step": step, "method": {}, "optimizer": {}}, keep=3)
    for step in (8, 12):
        (checkpoint.folder_of(tmp_path, step) / "state.pt").write_bytes(b"damaged")
    assert checkpoint.load_newest(tmp_path)[0]["step"] == 4
    assert checkpoint.save(tmp_path, 6, {"step": 6, "method": {}, "optimizer": {}}, keep=keep).exists()
    assert checkpoint.available(tmp_path) == [4, 6][-keep:] and checkpoint.load_newest(tmp_path)[0]["step"] == 6


def test_a_checkpoint_that_failed_is_not_called_saved(tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("checkpoint could not be written")

    monkeypatch.setattr(checkpoint, "save", full)
    real = loop.train_step

    def learn(plan, method, optimizer, cache, step, fraction):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return real(plan, method, optimizer, cache, step, fraction)

    monkeypatch.setattr(loop, "train_step", learn)
    console = Quiet()
    pretrain(DATA, out=tmp_path / "run", backbone=BACKBONE, settings=SMALL, console=console)
    stopped = next(m for m in console.messages if "stopped by SIGTERM" in m)
    assert "last checkpoint is of step None" in stopped and "saved" not in stopped


def test_a_run_from_weights_goes_on_without_them(tmp_path):
    first = small_run(tmp_path / "first", backbone="resnet10_w8", train__steps=2)
    settings = SMALL | {"train.steps": 2, "model.weights": str(first), "model.size_px": 72, "views.local_px": 20}
    second = pretrain(DATA, out=tmp_path / "second", backbone="resnet10_w8", settings=settings)
    assert config.load(second / "config.yaml")["model"]["stem"] == "cifar"  # that of the weights, not of 72 px
    first.rename(tmp_path / "moved")
    resume(second)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.steps": -5}, "train.steps must be above 0"),
        ({"train.epochs": 0.0}, "train.epochs must be above 0"),
        ({"train.accumulate": 0}, "train.accumulate must be above 0"),
        ({"train.seed": -1}, "train.seed must not be negative"),
        ({"train.batch": 64}, "larger than the data"),
        ({"model.size_px": 30}, "multiple of 8"),
        ({"dino.student_temp": 0.0}, "dino.student_temp must be above 0"),
        ({"dino.momentum": 1.5}, "dino.momentum must be a fraction"),
        ({"data.grey": True, "views.stain": 0.2}, "without colour"),
        ({"data.split": "nowhere"}, "no images of the split nowhere"),
        ({"model.stem": "small"}, "no effect on vit_micro_patch8"),
    ],
)
def test_settings_that_cannot_be_meant(settings, said, tmp_path):
    with pytest.raises(SaccadeError) as caught:
        small_run(tmp_path / "run", **{k.replace(".", "__"): v for k, v in settings.items()})
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_cnns_take_any_size(tmp_path):
    small_run(tmp_path / "run", backbone="resnet10_w8", model__size_px=28, train__steps=1)
