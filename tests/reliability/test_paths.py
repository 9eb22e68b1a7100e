"""Nothing that is handed on tells where it was made: paths are in data.json alone; data that have moved are found."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from saccade.api import Quiet, resume
from saccade.base import config
from saccade.base.places import base_name, located_origin, relative, without_folders
from saccade.cli.app import app
from saccade.errors import DataError
from saccade.features.stores import open_store
from saccade.features.thumbnails import Pictures
from saccade.train.run_config import load_config

CANARY = "jane-7f3a91"
SMALL = [
    word
    for setting in ("model.size_px=16", "views.local_count=2", "train.batch=8", "train.save_every=2", "dino.out_dim=16")
    for word in ("--set", setting)
]


def saccade(*words: object) -> str:
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer.output


def draw_images(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(10):
            pixels = draw.integers(0, 255, (24, 24, 3), np.uint8) // (1 if label == "a" else 2)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def tells(folder: Path) -> list[str]:
    """Files with the canary, but those that stay where they are."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("data.json")]
    return [str(path.relative_to(folder)) for path in files if CANARY.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder whose name is the canary, with data, a run, its evaluation, report and a table, by absolute paths."""
    root = tmp_path_factory.mktemp("paths") / CANARY
    data, run = draw_images(root / "data"), root / "run"
    (data / "a" / "cut.png").write_bytes((data / "a" / "1.png").read_bytes()[:60])
    saccade("show", data, "--sheet", root / "sheet.png")
    saccade("pretrain", data, "--out", run, "--backbone", "vit_micro_patch8_w8", "--steps", 4, "--max-bad", 0.1, *SMALL)
    saccade("embed", run, data, "--out", root / "table.parquet", "--max-bad", 0.1)
    saccade("evaluate", run, data, "--fractions", 1, "--max-bad", 0.1)
    saccade("report", run)
    return root


def test_only_data_json_tells_where_a_run_was_made(made):
    assert (made / "run" / "report.html").is_file() and (made / "run" / "evaluation.json").is_file()
    assert tells(made) == []
    assert '"data.source": "../data"' in (made / "run" / "data.json").read_text()
    assert load_config(made / "run").data.source == str(made / "data")


@pytest.mark.slow
def test_only_data_json_tells_where_everything_else_was_made(made):
    run, data = made / "run", made / "data"
    saccade(
        "finetune",
        run,
        data,
        "--out",
        made / "fine",
        "--steps",
        2,
        "--set",
        "train.batch=8",
        "--set",
        "data.max_bad=0.5",
    )
    saccade("attend", run, data / "a" / "1.png", "--out", made / "map.svg")
    saccade("export", run, "--to", "timm", "--out", made / "exported")
    saccade("doctor", run)
    words = ["--sizes", 8, "--regimes", "supervised", "--seeds", 1, "--steps", 2, "--size", 16, "--batch", 8]
    (data / "a" / "cut.png").unlink()
    saccade("compare", data, "--out", made / "study", "--backbones", "resnet10_w8,vit_micro_patch8_w8", *words)
    assert tells(made) == []


def test_a_table_finds_its_images_and_those_that_lie_far_away(made, tmp_path):
    store = open_store(made / "table.parquet")
    assert store.about["data"] == "data" and store.about["made_by"] == "run"
    assert Pictures(located_origin(store.about, store.place)).place == str(made / "data")
    far = tmp_path / "far" / "away" / "from" / "it" / "table.parquet"
    far.parent.mkdir(parents=True)
    saccade("embed", made / "run", made / "data", "--out", far, "--max-bad", 0.1)
    assert CANARY.encode() not in far.read_bytes()
    store = open_store(far)
    assert located_origin(store.about, store.place)["data"] == str(made / "data")
    far.with_name("table.parquet.data.json").unlink()
    assert located_origin(store.about, store.place)["data"] == "data"


def test_a_folder_with_data_and_run_can_be_moved(made, tmp_path):
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    assert load_config(moved / "run").data.source == str(moved / "data")


def test_a_run_whose_data_have_moved_is_resumed_where_they_are_the_same(made, tmp_path):
    run = shutil.copytree(made / "run", tmp_path / "run")
    with pytest.raises(DataError, match="not where they were") as caught:
        resume(run)
    assert "--data NEW" in str(caught.value)
    other = draw_images(tmp_path / "other")
    Image.new("RGB", (24, 24)).save(other / "a" / "1.png")
    with pytest.raises(DataError, match="not the ones this run began with"):
        resume(run, data=other)
    console = Quiet()
    moved = shutil.copytree(made / "data", tmp_path / "moved" / "images")
    resume(run, data=moved, console=console)
    assert any("continuing from step 4" in message for message in console.messages)
    assert load_config(run).data.source == str(moved) and config.load(run / "config.yaml")["data"]["source"] == str(
        moved
    )


def test_data_is_for_runs_that_are_resumed(made, tmp_path):
    answer = CliRunner().invoke(app, ["pretrain", "--data", str(made / "data"), "--out", str(tmp_path / "run")])
    assert answer.exit_code != 0 and "--data goes with --resume" in str(answer.exception)


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("/a/b/data", "/a/b/run", "../data"),
        ("/a/b/data", "/a/b/runs/1", "../../data"),
        ("/a/b/data", "/x/y/z", "/a/b/data"),
        ("/home/john/data", "/home/jane", "/home/john/data"),
        ("data", "/x/y/z", "data"),
    ],
)
def test_relative_places_do_not_climb_far(monkeypatch, path, folder, expected):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    assert relative(path, Path(folder)) == expected


def test_texts_without_folders():
    assert without_folders("x /a/b/c.png: cut (/a/b)") == "x c.png: cut (b)"
    assert without_folders("s3://bucket/a synthetic:tissue?n=3 a/b") == "s3://bucket/a synthetic:tissue?n=3 a/b"
    assert base_name("s3://bucket/a") == "s3://bucket/a"
