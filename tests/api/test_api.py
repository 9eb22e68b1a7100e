"""The main job through the public functions, on small data: learn, measure, look, report."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from PIL import Image

import saccade
from saccade.attention.image import AttendOptions
from saccade.errors import ContaminationError, DataError, UsageError
from saccade.evaluation.protocol import ProtocolConfig
from saccade.features.table import load_table
from saccade.tasks.evaluate import EvaluateOptions

DATA = "synthetic:tissue?n=160&size=32&groups=12"
QUICK = EvaluateOptions(protocol=ProtocolConfig(fractions=(1.0, 0.2), repeats=2, bootstrap=50))
SMALL = {"train.steps": 3, "train.batch": 8, "dino.out_dim": 32, "views.local_count": 1, "model.size_px": 32}


@pytest.fixture(scope="module", params=["vit_micro_patch8", "resnet10_w8"])
def run(request, tmp_path_factory):
    return saccade.pretrain(DATA, out=tmp_path_factory.mktemp("api") / "run", backbone=request.param, settings=SMALL)


ONE = pytest.mark.parametrize("run", ["resnet10_w8"], indirect=True)
"""For what does not depend on the kind of network."""


def test_public_names_are_callable_whatever_was_imported_before():
    import saccade.evaluation.protocol
    import saccade.features.embed_images
    import saccade.reporting.run_report
    import saccade.tasks.quickstart

    for name in saccade.__all__:
        assert callable(getattr(saccade, name)), name
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        saccade.trane  # noqa: B018


def test_evaluate_brings_baselines_and_writes_everything(run):
    found = saccade.evaluate([run], DATA, options=QUICK)
    models = {row["model"] for row in found.rows}
    assert models >= {"random weights", "pixels", "colour histogram"} and len(models) == 4
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["rows"] == found.to_dict()["rows"]
    assert stored["protocol"]["data"] == yaml.safe_load((run / "config.yaml").read_text())["data"]["source"]
    assert (run / "evaluation.csv").exists() and (run / "evaluation.md").exists()
    index = json.loads((run / "figures" / "index.json").read_text())
    assert {entry["kind"] for entry in index} == {"attention", "neighbours"}
    assert all((run / "figures" / entry["file"]).stat().st_size > 0 for entry in index)
    page = (run / "report.html").read_text()
    assert "random weights" in page and "http://" not in page.replace("http://www.w3.org", "")


@ONE
def test_grey_has_a_file_of_its_own(run):
    found = saccade.evaluate([run], DATA, options=dataclasses.replace(QUICK, grey=True))
    assert (run / "evaluation-grey.json").exists()
    assert "grey histogram" in {row["model"] for row in found.rows}


def test_contamination_is_refused(tmp_path):
    settings = SMALL | {"data.split": "test"}
    leaky = saccade.pretrain(DATA, out=tmp_path / "run", backbone="resnet10_w8", settings=settings)
    with pytest.raises(ContaminationError, match="test images"):
        saccade.evaluate([leaky], DATA, options=QUICK)
    marked = saccade.evaluate([leaky], DATA, options=dataclasses.replace(QUICK, allow_overlap=True))
    assert marked.protocol["overlap"] is True


def test_what_a_run_held_out_says_nothing_of_other_images_of_the_same_names(tmp_path):
    for folder, shown in (("one", list(range(40))), ("other", [100 + i // 4 * 2 + i % 2 for i in range(40)])):
        for i, picture in enumerate(shown):  # in ``other`` every image is there twice: 0.png and 2.png, 1.png and 3.png
            place = tmp_path / folder / "ab"[i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(picture).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(place)
    run = saccade.pretrain(tmp_path / "one", out=tmp_path / "run", backbone="resnet10_w8", settings=SMALL)
    held_out = set(json.loads((run / "data.json").read_text())["held_out"])
    assert len(held_out) == 12
    assert "held out from pretraining" in saccade.evaluate([run], tmp_path / "one", options=QUICK).protocol["split"]
    found = saccade.evaluate([run], tmp_path / "other", options=QUICK, out=tmp_path / "e")
    assert "drawn as test part" in found.protocol["split"] and not found.protocol["overlap"]
    settings = {"train.steps": 1, "train.batch": 4, "model.size_px": 32, "data.validation": 0.0}
    tuned = saccade.finetune(run, tmp_path / "other", out=tmp_path / "tuned", settings=settings)
    assert not tuned.protocol["overlap"]


@ONE
def test_two_models_side_by_side(run, tmp_path):
    found = saccade.evaluate([run, "random:resnet10_w8"], DATA, options=QUICK, out=tmp_path / "both")
    assert "random:resnet10_w8" in {d["against"] for d in found.differences}
    assert (tmp_path / "both" / "evaluation.json").exists()


def write_tiles(folder, splits=("",), count=8, depth=np.uint8):
    """PNG tiles of two classes below ``folder/SPLIT/CLASS``, each of them different."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                low, high = (0, 256) if depth == np.uint8 else (0, 4096)
                pixels = rng.integers(low, high, (32, 32) if depth == np.uint16 else (32, 32, 3)).astype(depth)
                Image.fromarray(pixels).save(folder / split / label / f"{split}{i}.png")
    return folder


def test_without_a_split_the_evaluated_part_is_held_out(tmp_path):
    folder = write_tiles(tmp_path / "tiles")
    run = saccade.pretrain(folder, out=tmp_path / "run", backbone="resnet10_w8", settings=SMALL)
    record = json.loads((run / "data.json").read_text())
    assert record["used"] + len(record["held_out"]) == 16 and 3 <= len(record["held_out"]) <= 7
    found = saccade.evaluate([run], folder, options=QUICK)
    assert found.protocol["n_test"] == len(record["held_out"]) and found.protocol["overlap"] is False
    everything = saccade.pretrain(
        folder, out=tmp_path / "all", backbone="resnet10_w8", settings=SMALL | {"data.split": "all"}
    )
    for path in (everything, everything / "model", everything / "model" / "model.safetensors"):
        with pytest.raises(ContaminationError, match="pretraining used"):
            saccade.evaluate([path], folder, options=QUICK)
    heir = saccade.pretrain(
        folder, out=tmp_path / "heir", backbone="resnet10_w8", settings=SMALL | {"model.weights": str(everything)}
    )
    with pytest.raises(ContaminationError, match="pretraining used"):
        saccade.evaluate([heir], folder, options=QUICK)


def test_val_is_the_test_part_where_there_is_no_other(tmp_path):
    folder = write_tiles(tmp_path / "tiles", splits=("train", "val"))
    run = saccade.pretrain(folder, out=tmp_path / "run", backbone="resnet10_w8", settings=SMALL)
    assert json.loads((run / "data.json").read_text())["used"] == 16
    assert "(val: there is no test)" in saccade.evaluate([run], folder, options=QUICK).protocol["text"]


@ONE
def test_a_copy_on_both_sides_is_refused(run, tmp_path):
    folder = write_tiles(tmp_path / "tiles", splits=("train", "test"))
    (folder / "test" / "a" / "copy.png").write_bytes((folder / "train" / "a" / "train0.png").read_bytes())
    with pytest.raises(ContaminationError, match="training and test part share"):
        saccade.evaluate([run], folder, options=QUICK)


def test_deeper_images_take_their_own_range(run, tmp_path):
    folder = write_tiles(tmp_path / "deep", depth=np.uint16)
    features = saccade.embed(run, folder).features
    assert np.abs(features).max() < 50 * np.abs(saccade.embed(run, DATA).features).max()


@ONE
def test_two_runs_of_one_name_are_two_rows(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / run.name)
    found = saccade.evaluate([run, tmp_path / run.name], DATA, options=QUICK, out=tmp_path / "both")
    assert len({row["model"] for row in found.rows}) == 5
    with pytest.raises(UsageError, match="duplicate model"):
        saccade.evaluate([run, run], DATA, options=QUICK, out=tmp_path / "twice")


@ONE
def test_unlabelled_images_cannot_be_evaluated(run, tmp_path):
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="needs labels"):
        saccade.evaluate([run], tmp_path)


def test_embed_is_the_same_alone_or_in_a_table(run, tmp_path):
    table = saccade.embed(run, DATA, out=tmp_path / "features.parquet")
    assert np.array_equal(load_table(tmp_path / "features.parquet").features, table.features)
    assert len(table) == 160 and len(set(table.hashes)) == 160


@pytest.fixture
def picture(tmp_path):
    pixels = saccade.open_source("synthetic:tissue?n=8&size=96").read(0).pixels
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "tile.png")
    mask = np.zeros((96, 96), np.uint8)
    mask[:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "tile.png"


@pytest.mark.parametrize("suffix", ["png", "svg", "csv"])
@pytest.mark.parametrize("query", ["cls", "50,60"])
def test_attend_in_every_form(run, picture, tmp_path, suffix, query):
    found = saccade.attend(run, picture, options=AttendOptions(query=query, size_px=64))
    path = found.save(tmp_path / f"map.{suffix}")
    assert path.stat().st_size > 100
    if "vit" in (run / "config.yaml").read_text() and suffix == "csv":
        rows = path.read_text().splitlines()
        assert len(rows) == 1 + 4 * 8 * 8
        weights = np.array([float(r.split(",")[-1]) for r in rows[1:]]).reshape(4, -1)
        assert np.allclose(weights.sum(axis=1) + found.amap.prefix_share, 1, atol=1e-4)


def test_attend_with_a_mask(run, picture):
    options = AttendOptions(size_px=64, threshold=0.6, mask=picture.with_name("mask.png"))
    scores = saccade.attend(run, picture, options=options).jaccard
    assert all(0 <= value <= 1 for value in scores.values()) and "mean of heads" in scores


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (AttendOptions(query="left"), "cls or Y,X"),
        (AttendOptions(query="500,3"), "outside the image"),
        (AttendOptions(head="12"), "no such head"),
        (AttendOptions(layer=40), "no such layer"),
    ],
)
def test_attend_errors(picture, options, said):
    with pytest.raises(UsageError, match=said):
        saccade.attend("random:vit_micro_patch8", picture, options=options)


def test_attend_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png"):
        saccade.attend("random:vit_micro_patch8", tmp_path / "nothing.png")


def test_attend_refuses_pixels_that_are_no_numbers(tmp_path):
    pixels = np.ones((64, 64), np.float32)
    pixels[2, 3] = np.nan
    Image.fromarray(pixels).save(tmp_path / "holes.tif")
    with pytest.raises(DataError, match=r"holes\.tif: contains NaN"):
        saccade.attend("random:vit_micro_patch8", tmp_path / "holes.tif")


def test_weights_continue_a_run(run, tmp_path):
    backbone = "vit_micro_patch8" if "vit_micro" in (run / "config.yaml").read_text() else "resnet10_w8"
    settings = SMALL | {"model.weights": str(run), "train.steps": 1}
    again = saccade.pretrain(DATA, out=tmp_path / "again", backbone=backbone, settings=settings)
    assert (again / "model" / "model.safetensors").exists()


def test_sixteen_bit_and_mixed_sizes_pretrain(tmp_path):
    import imagecodecs

    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        pixels = rng.integers(500, 60000, (40 + i, 48, 1), dtype=np.uint16)
        (folder / f"{i}.png").write_bytes(imagecodecs.png_encode(pixels))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n oops")
    settings = SMALL | {"data.max_bad": 0.2, "train.batch": 4}
    done = saccade.pretrain(folder, out=tmp_path / "run", backbone="resnet10_w8", settings=settings)
    data = json.loads((done / "data.json").read_text())
    assert data["dtype"] == "uint16" and data["range"][0] >= 500 and data["channels"] == 1
    assert [item["id"] for item in data["damaged"]] == ["broken.png"]
    spec = json.loads((done / "model" / "config.json").read_text())
    assert "500" in json.dumps(spec) or data["range"][0] > 500
