"""Damaged text files of a run end with an error that names the file, never with a traceback."""

import random
import shutil
from pathlib import Path

import pytest

from saccade.api import pretrain
from saccade.base import run_folder
from saccade.errors import SaccadeError
from saccade.models.backbones.weights import load_model
from saccade.reporting.run_files import read_run
from saccade.train.run_config import load_config

SEEDS = 300
PIECES = [b"null", b"[]", b"{}", b"-1", b"1e999", b"\xff", b"\x00", b"\n", b'"', b":", b"- a", b"[" * 50, b"&a *a"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    settings = {"model.size_px": 16, "train.batch": 8, "train.steps": 3, "train.log_every": 1, "dino.out_dim": 16}
    out = tmp_path_factory.mktemp("texts") / "run"
    return pretrain("synthetic:tissue?n=16&size=16", out=out, backbone="vit_micro_patch8_w8", settings=settings)


def mutate(data: bytes, seed: int) -> bytes:
    """Cut, replace, remove or insert bytes, one to three times."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.randint(0, 20))
        kind = draw.choice(["cut", "replace", "remove", "insert", "flip"])
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        else:
            piece = b"" if kind == "remove" else draw.choice(PIECES)
            data = data[:at] + piece + data[at if kind == "insert" else end :]
    return data


def read_metrics(run: Path):
    run_folder.Metrics(run).continue_from(2)


READERS = {
    "config.yaml": load_config,
    "data.json": lambda run: run_folder.data_record(run),
    "env.json": lambda run: run_folder.read_json(run / "env.json"),
    "metrics.jsonl": read_metrics,
    "model/config.json": load_model,
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_text_file_is_named(trained, tmp_path, name):
    run = shutil.copytree(trained, tmp_path / "run")
    intact = (run / name).read_bytes()
    messages = []
    for seed in range(SEEDS):
        (run / name).write_bytes(mutate(intact, seed))
        try:
            READERS[name](run)
        except SaccadeError as error:
            messages.append(f"seed {seed}: {error}")
        read_run(run)  # the report is written from what can be read
    label = "model" if name == "model/config.json" else name  # a damaged model is named by its folder
    assert not [message for message in messages if label not in message]
    assert len(messages) > SEEDS / 10 or name == "metrics.jsonl"


def test_the_error_names_the_line(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "config.yaml").write_text("data:\n  source: [a\ntrain: {")
    with pytest.raises(SaccadeError, match=r"config\.yaml, line 3"):
        load_config(run)
    (run / "data.json").write_text('{"files":\n [}')
    with pytest.raises(SaccadeError, match=r"data\.json, line 2"):
        run_folder.read_json(run / "data.json")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"saccade_format": 1}', '{"saccade_format": 1, "input": 3, "label": ""}']
)
def test_a_model_without_its_description_is_refused(trained, tmp_path, text):
    model = shutil.copytree(trained / "model", tmp_path / "model")
    (model / "digests.json").unlink()
    (model / "config.json").write_text(text)
    with pytest.raises(SaccadeError, match=r"config\.json"):
        load_model(model)
