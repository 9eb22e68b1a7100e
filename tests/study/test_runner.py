"""A study from its design to its trials: what is trained, what is kept, what goes on where it stood."""

import json
import os
import shutil
import sys
import time

import numpy as np
import pytest
import torch

import saccade
from saccade.api import CompareOptions
from saccade.base.contracts import InputSpec
from saccade.data.cache.image_cache import build_cache, input_spec
from saccade.data.open import open_source
from saccade.errors import TrainingError, UsageError
from saccade.study import conditions, images, runner
from saccade.study.design import SERIES, Design, StudyConfig, Trial, check_design, find_trials, training_steps

DATA = "synthetic:tissue?n=200&size=32&groups=12"
STUDY = StudyConfig(data=DATA, size_px=32, batch=8, steps=3, settings=("dino.out_dim=32",))
DESIGN = Design(("resnet10_w8", "vit_micro_patch8_w32"), ("supervised", "dino"), (16, 32), (0, 1))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    options = CompareOptions(regimes=DESIGN.regimes, seeds=2, workers=2, study=STUDY)
    page = saccade.compare(DATA, out=out, backbones=DESIGN.backbones, sizes=DESIGN.sizes, options=options)
    assert page == out / "study.html"
    return out


@pytest.mark.slow
def test_every_trial_is_done_and_kept(study):
    assert set(find_trials(study)) == set(DESIGN.trials()) and len(find_trials(study)) == 16
    kept = images.load(study)
    test, truth = kept.test, kept.test.numbered(kept.classes).labels
    for trial in find_trials(study):
        found = json.loads((trial.folder(study) / "cell.json").read_text())
        assert tuple(found["series"]) == SERIES[trial.regime] and found["steps"] == 3
        with np.load(trial.folder(study) / "answers.npz") as arrays:
            kinds = {tuple(key.split("|")) for key in arrays.files}
            assert kinds == {(s, c) for s in SERIES[trial.regime] for c in conditions.CONDITIONS}
            assert all(arrays[key].shape == (len(test), 8) for key in arrays.files)
            first = arrays[f"{SERIES[trial.regime][0]}|plain"]
            right = np.mean(first.argmax(axis=1) == truth)
        assert found["series"][SERIES[trial.regime][0]]["accuracy"]["plain"] == pytest.approx(right, abs=0.02)
        assert (found["drift"] is not None) == (trial.size == 32 and trial.seed == 0)
        folder = trial.folder(study) / ("dino" if trial.regime == "dino" else "run")
        assert json.loads((folder / "data.json").read_text())["used"] == trial.size
        assert not (folder / "checkpoints").exists() and (folder / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_page_and_its_tables_are_there(study):
    value = json.loads((study / "study.json").read_text())
    assert value["cells"]["done"] == value["cells"]["planned"] == 16
    assert value["costs"]["resnet10_w8"]["parameters"] > 0 and value["costs"]["resnet10_w8"]["images_per_second"] > 0
    assert set(value["drift"]["resnet10_w8"]["error"]) == {"random", "supervised", "dino"}
    for name in ("study.html", "study.md", "study.csv"):
        assert "resnet10_w8" in (study / name).read_text()


@pytest.mark.slow
def test_called_again_it_does_only_what_is_missing(study):
    before = {trial: (trial.folder(study) / "cell.json").stat().st_mtime_ns for trial in find_trials(study)}
    lost = Trial("resnet10_w8", "supervised", 16, 1)
    (lost.folder(study) / "cell.json").unlink()
    scores = (lost.folder(study) / "answers.npz").read_bytes()
    console = saccade.api.Quiet()
    options = CompareOptions(regimes=DESIGN.regimes, seeds=2, workers=2, study=STUDY)
    saccade.compare(DATA, out=study, backbones=DESIGN.backbones, sizes=DESIGN.sizes, options=options, console=console)
    after = {trial: (trial.folder(study) / "cell.json").stat().st_mtime_ns for trial in find_trials(study)}
    assert {trial for trial in after if after[trial] != before[trial]} == {lost}
    assert any("15 of them completed before" in text for text in console.messages)
    with np.load(lost.folder(study) / "answers.npz") as new:
        (study / "old.npz").write_bytes(scores)
        with np.load(study / "old.npz") as old:
            assert all(np.array_equal(new[key], old[key]) for key in old.files)
    other = CompareOptions(regimes=DESIGN.regimes, seeds=2, study=StudyConfig(**{**vars(STUDY), "steps": 4}))
    with pytest.raises(UsageError, match=r"has other settings(.|\n)*steps=4"):
        saccade.compare(DATA, out=study, backbones=DESIGN.backbones, sizes=DESIGN.sizes, options=other)


@pytest.mark.slow
def test_a_trial_that_fails_costs_only_itself(study, tmp_path, monkeypatch):
    """A worker that dies is replaced; its trial is named, and can be done later."""
    real = runner.Worker

    class Dying(real):
        def ask(self, task):
            if task["kind"] == "trial" and task["trial"]["seed"] == 1:
                self.process.kill()
            return super().ask(task)

    monkeypatch.setattr(runner, "Worker", Dying)
    (tmp_path / "s").mkdir()
    for name in ("study.yaml", "prices.json"):  # what was measured is not measured again
        shutil.copy(study / name, tmp_path / "s")
    console = saccade.api.Quiet()
    options = CompareOptions(regimes=("supervised",), seeds=2, study=STUDY)
    saccade.compare(DATA, out=tmp_path / "s", backbones=DESIGN.backbones, sizes=(16,), options=options, console=console)
    assert {trial.seed for trial in find_trials(tmp_path / "s")} == {0}
    failed = json.loads((tmp_path / "s" / "study.json").read_text())["cells"]["failed"]
    assert len(failed) == 2 and all("ended with code -9" in text for text in failed)
    assert "ended with code -9" in (tmp_path / "s" / "study.html").read_text()


def test_a_page_names_no_folder_of_this_machine():
    assert runner._public_name("/home/someone/tiles.zip") == "tiles.zip" and runner._public_name(DATA) == DATA


def test_grids_that_cannot_be_meant():
    good = Design(("a", "b"), ("dino",), (10,), (0,))
    for design, study, said in (
        (Design(("a",), *list(vars(good).values())[1:]), STUDY, "two or more backbones"),
        (Design(("a", "a"), ("dino",), (10,), (0,)), STUDY, "duplicate backbone"),
        (Design(("a", "b"), ("dinoo",), (10,), (0,)), STUDY, "did you mean 'dino'"),
        (good, StudyConfig(steps=10, flops=1e9), "one of them"),
        (good, StudyConfig(steps=0, flops=0.0), "one of them"),
    ):
        with pytest.raises(UsageError, match=said):
            check_design(design, study)


def test_a_budget_of_operations_gives_dear_networks_fewer_steps():
    study = StudyConfig(steps=0, flops=1e12, size_px=64)
    cheap, dear = (training_steps(study, name, "supervised", 3, 32) for name in ("resnet18_w8", "resnet18_w32"))
    assert cheap > 8 * dear > 0
    assert training_steps(study, "resnet18_w8", "dino", 3, 32) < cheap / 2
    assert training_steps(StudyConfig(steps=7), "resnet18_w8", "dino", 3, 32) == 7


def test_sizes_must_be_there(tmp_path):
    study = StudyConfig(data=DATA, size_px=32, batch=8, steps=1)
    images.prepare(tmp_path, study, lambda done, total: None)
    found = images.load(tmp_path)
    with pytest.raises(UsageError, match=f"at most {len(found.train)}"):
        images.check_sizes(found, (16, 10_000))
    with pytest.raises(UsageError, match="at least 16: two for each of 8 classes"):
        images.check_sizes(found, (8,))


def test_kept_images_are_the_images(tmp_path):
    study = StudyConfig(data=DATA, size_px=32, test_limit=24)
    images.prepare(tmp_path, study, lambda done, total: None)
    kept, cache = images.load(tmp_path), build_cache(open_source(DATA), cache_px=48)
    number = {record.id: i for i, record in enumerate(cache.records)}
    assert len(kept.test) == 24 and {r.label for r in kept.test.records} == set(kept.classes)
    for part in (kept.train, kept.test):
        for i in (0, len(part) - 1):
            assert np.array_equal(part.image(i), cache.image(number[part.records[i].id]))
            assert part.records[i] == cache.records[number[part.records[i].id]]
    assert not {r.group for r in kept.train.records} & {r.group for r in kept.test.records}


# --- conditions ---------------------------------------------------------------------------------


def smooth(count=3, side=32):
    """Images without fine detail, so that interpolation loses little."""
    torch.manual_seed(0)
    x = torch.rand(count, 3, 4, 4)
    return torch.nn.functional.interpolate(x, size=(side, side), mode="bicubic").clamp(0, 1)


def test_turning_by_quarters_is_exact_turning():
    x = smooth()
    for quarters in (0, 1, 2, 3):
        turned = conditions.turn(x, torch.full((3,), 90.0 * quarters))
        torch.testing.assert_close(turned, torch.rot90(x, quarters, dims=(2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(conditions.changed(x, "turn 90", np.arange(3)), torch.rot90(x, 1, dims=(2, 3)))


@pytest.mark.parametrize("name", conditions.CONDITIONS)
def test_conditions_depend_on_the_image_alone(name):
    x, items = smooth(4), np.arange(4)
    whole = conditions.changed(x, name, items)
    parts = torch.cat([conditions.changed(x[i : i + 1], name, items[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, parts)
    assert whole.shape == x.shape and whole.min() >= -1e-6 and whole.max() <= 1 + 1e-6
    assert (name == "plain") == torch.equal(whole, x)


def test_grey_images_have_no_stain():
    def spec(channels, grey):
        return InputSpec(channels, 32, 0.0, 255.0, (0.5,) * channels, (0.2,) * channels, grey)

    assert "stain" in conditions.conditions_of(spec(3, False))
    assert "stain" not in conditions.conditions_of(spec(3, True)) + conditions.conditions_of(spec(1, False))


def test_drift_is_nothing_for_what_does_not_turn():
    cache = build_cache(open_source(DATA), cache_px=32)
    spec = input_spec(cache, 32, grey=False)
    mean = conditions.drift(lambda x: x.mean(dim=(2, 3)), cache, spec, torch.device("cpu"))
    pixels = conditions.drift(lambda x: x.flatten(1), cache, spec, torch.device("cpu"))
    quarters = [conditions.ANGLES.index(angle) for angle in (0, 90, 180, 270)]
    assert all(mean[i] < 1e-4 for i in quarters) and max(mean) < 0.1
    assert pixels[0] < 1e-6 and min(pixels[1:]) > 0.5


def test_a_worker_answers_errors_and_goes_on(tmp_path):
    study = StudyConfig(data=DATA, size_px=32, batch=8, steps=1)
    runner.write_settings(tmp_path, study)
    images.prepare(tmp_path, study, lambda done, total: None)
    worker = runner.Worker(tmp_path, 0, 1)
    try:
        # Ctrl-C in a terminal must not reach the training: it would save, end, and look done.
        assert os.getpgid(worker.process.pid) != os.getpgid(0)
        first = worker.ask({"kind": "drift", "backbone": "resnet99"})
        assert "unknown backbone" in first["error"]
        second = worker.ask({"kind": "drift", "backbone": "resnet10_w8"})
        assert len(second["result"]["error"]) == len(conditions.ANGLES)
        worker.process.kill()
        assert "ended with code -9" in worker.ask({"kind": "drift", "backbone": "resnet10_w8"})["error"]
    finally:
        worker.close()
    assert sys.executable in str(worker.process.args)


def test_a_worker_ends_with_the_one_who_asked(tmp_path):
    """Killed, a study leaves no process behind that writes into trials which the next call trains."""
    study, trial = StudyConfig(data=DATA, size_px=32, batch=8, steps=100_000), Trial("resnet10_w8", "supervised", 16, 0)
    runner.write_settings(tmp_path, study)
    images.prepare(tmp_path, study, lambda done, total: None)
    worker = runner.Worker(tmp_path, 0, 1)
    try:
        worker.process.stdin.write(json.dumps({"kind": "trial", "trial": vars(trial), "with_drift": False}) + "\n")
        worker.process.stdin.flush()
        metrics, began = trial.folder(tmp_path) / "run" / "metrics.jsonl", time.monotonic()
        while not metrics.exists():
            assert worker.process.poll() is None and time.monotonic() - began < 100
            time.sleep(0.1)
        worker.process.stdin.close()
        assert worker.process.wait(timeout=20) == 1
        assert not trial.is_done(tmp_path)
    finally:
        worker.close()


def test_a_training_that_was_stopped_is_no_trial(tmp_path, monkeypatch):
    from saccade.study import trial as trials
    from saccade.train import loop

    study = StudyConfig(data=DATA, size_px=32, batch=8, steps=6)
    images.prepare(tmp_path, study, lambda done, total: None)

    class Stopped(loop.StopRequest):
        def __init__(self):
            super().__init__()
            self.requested = "SIGTERM"

    monkeypatch.setattr(loop, "StopRequest", Stopped)
    trial = Trial("resnet10_w8", "supervised", 16, 0)
    with pytest.raises(TrainingError, match="training was interrupted"):
        trials.run_trial(tmp_path, study, images.load(tmp_path), trial, with_drift=False)
    assert not trial.is_done(tmp_path)


def test_a_backbone_that_cannot_be_trained_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.Worker, "ask", lambda self, task: {"error": "out of memory"})
    options = CompareOptions(study=STUDY)
    with pytest.raises(TrainingError, match=r"resnet10_w8 cannot be trained on this machine(.|\n)*out of memory"):
        saccade.compare(DATA, out=tmp_path / "s", backbones=DESIGN.backbones, sizes=(16,), options=options)
