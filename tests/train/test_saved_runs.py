"""Runs that saccade 0.1 saved: their configuration is read, their model loads, and they continue as they would have.

``data/run-0.1`` was written by version 0.1.0 with 6 steps each; the checkpoint of step 6 was removed.
"""

import shutil
from pathlib import Path

import pytest

from saccade.api import Quiet, resume
from saccade.base import config, run_folder
from saccade.models.backbones.weights import load_model
from saccade.train import checkpoint
from saccade.train.run_config import load_config, run_from_dict

SAVED = Path(__file__).parent / "data" / "run-0.1"
CONFIGS = sorted((SAVED / "configs").glob("*.yaml"))


@pytest.fixture(params=["dino", "contrast"])
def run(request, tmp_path) -> Path:
    return shutil.copytree(SAVED / request.param, tmp_path / "run")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in run_folder.read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_a_run_of_0_1_continues_with_the_losses_it_had(run):
    recorded = losses(run)
    console = Quiet()
    resume(run, console=console)
    assert any("continuing from step 4 of 6" in message for message in console.messages)
    assert len(recorded) == 6 and losses(run) == pytest.approx(recorded, rel=1e-4)
    assert checkpoint.available(run) == [4, 6]


def test_the_model_and_the_settings_of_0_1_load(run):
    model = load_model(run)
    assert (model.backbone.name, model.spec.size_px) == ("vit_micro_patch8_w8", 16)
    settings = load_config(run)
    assert (settings.train.steps, settings.train.batch, settings.data.source) == (6, 8, "synthetic:tissue?n=24&size=16")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configuration_of_every_method_of_0_1_is_read_and_keeps_its_values(path):
    values = config.load(path)
    read = config.to_dict(run_from_dict(values))
    old, new = values["train"].pop("method"), read["train"].pop("method")
    values[new] = values.pop(old)
    assert {name: read[name] | section for name, section in values.items()} == read
