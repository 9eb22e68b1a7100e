"""The hierarchy: settings by level, vectors made once and slide by slide, whole runs from slides to heads and maps."""

import csv
import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from feature_files import features
from made_slides import on_glass, texture, write_slide
from saccade import api
from saccade.base import run_folder
from saccade.base.config import TypedText, load
from saccade.base.contracts import Record
from saccade.cli import app
from saccade.data.slide_features import load_parquet, read_about, save_parquet
from saccade.errors import ContaminationError, ModelError, TrainingError, UsageError
from saccade.evaluation.nested_cv import NestedConfig, outer_folds
from saccade.features.table import load_table, save_table
from saccade.hierarchy import embed_regions, train_levels
from saccade.hierarchy.attend import attend_slide
from saccade.hierarchy.end_to_end import regions_of, vectors_as_grids
from saccade.hierarchy.evaluate_slides import HeadOptions, cohort_of
from saccade.hierarchy.head_io import load_head
from saccade.hierarchy.heads import HeadConfig
from saccade.hierarchy.settings import HiptConfig, is_hierarchy, read_request, settings_of, split_settings
from saccade.tasks.plan import PlanOptions
from saccade.train.loop import Quiet

TILE = "random:resnet10_w8"
SETTINGS = {
    "hipt.tile": TILE,
    "hipt.region_px": 128,
    "data.tile_px": 32,
    "data.mpp": 0.5,
    "region.model.backbone": "grid_nano_w32",
    "region.train.steps": 2,
    "region.train.batch": 4,
    "region.dino.out_dim": 32,
}

QUICK = HeadConfig(steps=2)

# --- settings ------------------------------------------------------------------------------------


def test_settings_go_to_their_level():
    found = split_settings(
        "S", "dino", "short", {"train.minutes": 10, "train.seed": 3, "data.mpp": 0.5, "region.dino.out_dim": 64}
    )
    assert [found.levels[level]["train.minutes"] for level in ("tile", "region", "slide")] == [6, 3, 1]
    assert all(found.levels[level]["train.seed"] == 3 for level in found.levels)
    assert found.levels["tile"]["data.mpp"] == 0.5 and "data.mpp" not in found.levels["region"]
    assert found.levels["region"]["dino.out_dim"] == 64 and found.levels["region"]["model.backbone"] == "grid_tiny"
    own = split_settings("S", "dino", "short", {"train.minutes": 10, "region.train.steps": TypedText("5")})
    assert "train.minutes" not in own.levels["region"]
    assert settings_of(own.levels["region"])["train.steps"] == TypedText("5")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hipt.nothing": 1}, "hipt.nothing"),
        ({"hipt.tile": "M", "tile.model.backbone": "resnet10"}, "no effect"),
        ({"hipt.min_tissue": 2.0}, "fraction"),
    ],
)
def test_settings_that_cannot_be_meant(settings, words):
    with pytest.raises(UsageError, match=words):
        split_settings("S", "dino", "microscopy", settings)


def test_tiles_divide_the_region():
    assert HiptConfig(region_px=4096).side(256) == 16
    with pytest.raises(UsageError, match="do not divide"):
        HiptConfig(region_px=1000).side(256)


# --- vectors -------------------------------------------------------------------------------------


@pytest.fixture
def reader():
    from saccade.base.contracts import InputSpec
    from saccade.models.backbones.build import build
    from saccade.models.backbones.weights import LoadedModel

    spec = InputSpec(6, 4, 0.0, 1.0, (0.0,) * 6, (1.0,) * 6, grid=True)
    network = build("grid_nano_w32", channels=6, size_px=4)
    return embed_regions.Reader(LoadedModel(network.eval(), spec, "r"), "hash of r")


def counted(monkeypatch) -> list[str]:
    """Names of the slides that a network is asked about."""
    asked: list[str] = []
    inner = embed_regions._vectors_of

    def spy(reader, below, file, *rest):
        asked.append(file.stem)
        return inner(reader, below, file, *rest)

    monkeypatch.setattr(embed_regions, "_vectors_of", spy)
    return asked


def test_embedding_twice_is_free(tmp_path, reader, monkeypatch):
    files = [features(tmp_path / f"s{i}.parquet", seed=i)[0] for i in range(3)]
    asked, out = counted(monkeypatch), tmp_path / "out"
    first = embed_regions.embed_grids(reader, files, out, side=4, min_tissue=0.5, console=Quiet())
    held = [load_parquet(file).features for file in first]
    assert asked == ["s0", "s1", "s2"]
    assert (
        embed_regions.embed_grids(reader, files, out, side=4, min_tissue=0.5, console=Quiet()) == first
        and len(asked) == 3
    )
    # Another network, other tiles or another side are not the same.
    embed_regions.embed_grids(
        embed_regions.Reader(reader.model, "other"), files, out, side=4, min_tissue=0.5, console=Quiet()
    )
    assert len(asked) == 6
    again = embed_regions.embed_grids(reader, files, out, side=4, min_tissue=0.5, console=Quiet())
    assert len(asked) == 9 and all(np.array_equal(a, load_parquet(f).features) for a, f in zip(held, again))
    features(tmp_path / "s1.parquet", seed=7)
    embed_regions.embed_grids(reader, files, out, side=4, min_tissue=0.5, console=Quiet())
    assert asked[9:] == ["s1"]


def test_fewer_tiles_of_the_same_slide_are_other_regions(tmp_path, reader, monkeypatch):
    """Another share of tissue, or damaged tiles left out: slide and weights are the same, the tiles are not."""
    file, _ = features(tmp_path / "s.parquet")
    whole = load_parquet(file)
    fewer = dataclasses.replace(whole, coords=whole.coords[:-3], features=whole.features[:-3])
    asked = counted(monkeypatch)

    def found(out):
        return load_parquet(embed_regions.embed_grids(reader, [file], out, side=4, min_tissue=0.5, console=Quiet())[0])

    found(tmp_path / "out")
    save_parquet(file, fewer)
    again, afresh = found(tmp_path / "out"), found(tmp_path / "afresh")
    assert np.array_equal(again.features, afresh.features) and np.array_equal(again.coords, afresh.coords)
    found(tmp_path / "out")
    assert len(asked) == 3


def test_a_label_that_comes_later_is_in_the_vectors_above(tmp_path, reader, monkeypatch):
    file, _ = features(tmp_path / "s.parquet")
    (out,) = embed_regions.embed_grids(reader, [file], tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())
    held, known = load_parquet(out).features, load_parquet(file)
    save_parquet(file, dataclasses.replace(known, about=known.about | {"label": "late", "group": "P9"}))
    asked = counted(monkeypatch)
    embed_regions.embed_grids(reader, [file], tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())
    again = load_parquet(out)
    assert (again.about["label"], again.about["group"]) == ("late", "P9")
    assert asked == [] and np.array_equal(again.features, held)


def test_a_pass_goes_on_with_the_next_slide(tmp_path, reader, monkeypatch):
    files = [features(tmp_path / f"s{i}.parquet", seed=i)[0] for i in range(3)]
    inner = embed_regions.save_parquet

    def cut(path, found):
        if path.stem == "s1":
            raise KeyboardInterrupt
        inner(path, found)

    with monkeypatch.context() as patched:
        patched.setattr(embed_regions, "save_parquet", cut)
        with pytest.raises(KeyboardInterrupt):
            embed_regions.embed_grids(reader, files, tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())
    asked = counted(monkeypatch)
    assert len(embed_regions.embed_grids(reader, files, tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())) == 3
    assert asked == ["s1", "s2"]


def test_a_region_says_the_same_alone_and_among_others(tmp_path, reader):
    file, _ = features(tmp_path / "s.parquet")
    (out,) = embed_regions.embed_grids(reader, [file], tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())
    found = load_parquet(out)
    assert found.about["tile_px_level0"] == 4 * 100.5 and found.about["tile_px"] == 4 * 64
    assert found.features.shape == (len(found.coords), 32)


def test_vectors_of_another_width_are_refused(tmp_path, reader):
    file, _ = features(tmp_path / "s.parquet", width=7)
    with pytest.raises(ModelError, match="does not fit"):
        embed_regions.embed_grids(reader, [file], tmp_path / "out", side=4, min_tissue=0.5, console=Quiet())


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide_table(tmp_path_factory):
    """Eight slides of four patients: half of them coarse, half fine, all with a white rim."""
    folder = tmp_path_factory.mktemp("slides")
    rows = [("path", "label", "patient")]
    for i in range(8):
        pixels = on_glass(texture(288, 320, seed=i, grain=1.0 + 2 * (i % 2)), 16)
        write_slide(folder / f"slide{i}.tif", pixels, level_px=((144, 160),))
        rows.append((f"slide{i}.tif", ("fine", "coarse")[i % 2], f"p{i // 2 * 2 + i % 2 if i < 4 else i}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def hierarchy(slide_table, tmp_path_factory):
    """A hierarchy that learned from four other slides."""
    folder = tmp_path_factory.mktemp("others")
    for i in range(4):
        pixels = on_glass(texture(288, 320, seed=50 + i, grain=1.0 + i), 16)
        write_slide(folder / f"other{i}.tif", pixels, level_px=((144, 160),))
    out = tmp_path_factory.mktemp("run") / "hipt"
    return api.pretrain(folder, out=out, backbone="hipt", settings=SETTINGS)


def test_slides_that_come_later_are_seen_as_those_it_learned_from(hierarchy, slide_table, tmp_path):
    """Random weights bring no mean and spread of their own: alone, each slide would be seen by its own."""
    api.embed(hierarchy, slide_table / "slide2.tif", out=tmp_path / "one.parquet")
    files = sorted((hierarchy / "features" / "tile").glob("*.parquet"))
    assert len(files) >= 5 and len({json.dumps(read_about(file)["input"]) for file in files}) == 1
    assert "mean" in read_about(files[0])["input"]


def files_of(run, slide):
    """The files of the vectors of one slide: of its tiles, of its regions."""
    return [next((run / "features" / level).glob(f"{slide}-*.parquet")) for level in ("tile", "region")]


def test_too_few_regions_are_refused_before_anything_is_learned(slide_table, tmp_path):
    few = SETTINGS | {"hipt.region_px": 256}  # one a slide, and half of the slides have tissue enough for none
    with pytest.raises(UsageError, match=r"regions? of 256 px: too few") as told:
        api.pretrain(slide_table / "slide0.tif", out=tmp_path / "run", backbone="hipt", settings=few)
    assert re.search(r"128 px: \d", str(told.value)) and not (tmp_path / "run").exists()
    console = Quiet()
    api.pretrain(slide_table, out=tmp_path / "run", backbone="hipt", settings=SETTINGS, console=console)
    assert any("few for training the region level" in line for line in console.messages)


def test_slides_that_are_called_alike_are_kept_apart(hierarchy, tmp_path):
    """Another slide under the name of one that was learned from takes nothing from it."""
    before = {file: file.read_bytes() for file in (hierarchy / "features" / "tile").iterdir()}
    write_slide(tmp_path / "other0.tif", on_glass(texture(288, 320, seed=99), 16), level_px=((144, 160),))
    api.embed(hierarchy, tmp_path)
    after = {file: file.read_bytes() for file in (hierarchy / "features" / "tile").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_a_hierarchy_is_ordinary_runs(hierarchy):
    assert is_hierarchy(hierarchy) and read_request(hierarchy).hipt.region_px == 128
    assert (hierarchy / "region" / "report.html").exists() and train_levels.finished(hierarchy / "region")
    assert not (hierarchy / "slide").exists()  # four slides are too few
    assert Path(load(hierarchy / "region" / "config.yaml")["data"]["source"]).is_absolute()
    record = run_folder.data_record(hierarchy)
    assert len(record["files"]) == 4 and all(item["group"] for item in record["files"])


def test_one_page_has_the_slides_and_every_level(hierarchy):
    page = (hierarchy / "report.html").read_text(encoding="utf-8")
    tiles = sum(line["tiles"] for line in run_folder.read_json(hierarchy / "data.json")["slides"]["slides"])
    regions = run_folder.read_json(hierarchy / "region" / "data.json")["used"]
    for words in (
        "A hierarchy over 4 slides, without labels",
        f"trained on {regions} regions",
        f"<dd>{tiles}</dd>",
        f"The tile level is <code>{TILE}</code>",
        "Tissue masks of the slides.",
        "Training of the region level",
        'href="region/report.html"',
        "a slide is the mean of its regions",
    ):
        assert words in page
    assert page.count("data:image/png") == 1  # the sheet
    assert api.report(hierarchy).read_text(encoding="utf-8") == page


def test_the_doctor_names_the_level_that_is_ill(hierarchy, tmp_path):
    assert {one.name.partition(": ")[2] for one in api.examine(hierarchy)} <= {"too few steps to learn anything"}
    ill = tmp_path / "ill"
    shutil.copytree(hierarchy, ill)
    line = json.loads((ill / "region" / "metrics.jsonl").read_text().splitlines()[-1])
    dead = [line | {"step": step, "loss": 60.0, "rank": 1.0} for step in range(1, 60)]
    (ill / "region" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in dead))
    found = api.examine(ill)
    assert found and all(one.name.startswith("region level: ") for one in found)
    assert all(key.startswith("region.") for one in found for key in one.change)


def test_resuming_a_whole_hierarchy_computes_nothing(hierarchy, monkeypatch):
    asked = counted(monkeypatch)
    monkeypatch.setattr(train_levels.Embedder, "features", lambda *_: pytest.fail("tiles were embedded again"))
    monkeypatch.setattr(train_levels.training, "start", lambda *_: pytest.fail("a level was trained again"))
    assert api.resume(hierarchy) == hierarchy and asked == []
    with pytest.raises(UsageError, match="region_px"):
        api.resume(hierarchy, settings={"hipt.region_px": 256})


def test_a_level_that_was_cut_off_goes_on(slide_table, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(train_levels.training, "start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            api.pretrain(slide_table, out=out, backbone="hipt", settings=SETTINGS)
    with pytest.raises(UsageError, match="not trained yet"):
        train_levels.load(out)
    with pytest.raises(UsageError, match="already holds"):
        api.pretrain(slide_table, out=out, backbone="hipt", settings=SETTINGS)
    monkeypatch.setattr(train_levels.Embedder, "features", lambda *_: pytest.fail("tiles were embedded again"))
    assert train_levels.finished(api.resume(out) / "region")


def test_a_level_that_is_stopped_says_how_to_go_on(slide_table, tmp_path, monkeypatch):
    monkeypatch.setattr(train_levels, "finished", lambda _: False)
    with pytest.raises(TrainingError, match="region level"):
        api.pretrain(slide_table, out=tmp_path / "run", backbone="hipt", settings=SETTINGS)


@pytest.fixture(scope="module")
def finetuned(hierarchy, slide_table, tmp_path_factory):
    nested = NestedConfig(folds=2, inner=2, fractions=(1.0, 0.5), repeats=1, bootstrap=50)
    options = HeadOptions(head=QUICK, nested=nested)
    out = tmp_path_factory.mktemp("heads") / "out"
    return out, api.finetune_slides(hierarchy, slide_table, out=out, options=options)


def test_heads_are_compared_with_mean_pooling_and_random_weights(finetuned):
    out, found = finetuned
    models = {row["model"] for row in found.rows}
    assert {"hierarchy, abmil", "hierarchy, transformer", "hierarchy, mean", "mean of tiles"} <= models
    assert {"random second level, abmil", "random second level, mean"} <= models
    assert all(0 <= row["low"] <= row["mean"] + 1e-9 <= row["high"] + 1e-9 <= 1 + 1e-8 for row in found.rows)
    page = api.report(out).read_text(encoding="utf-8")
    assert (
        page.count("<svg") == 2
        and "AUROC" in page
        and found.protocol["text"] in html.unescape(page.replace("\u00a0", " "))
    )
    assert (
        "AUROC" in (out / "slides.md").read_text() and run_folder.read_json(out / "slides.json")["rows"] == found.rows
    )


class Counting(Quiet):
    """A console that keeps what it is told of progress."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def progress(self, step, total, logs):
        self.seen.append((step, total, logs))


def test_the_region_level_trained_on_stands_beside_the_resting_one(hierarchy, slide_table, tmp_path):
    nested = NestedConfig(folds=2, inner=2, fractions=(1.0,), bootstrap=20)
    options = HeadOptions(heads=("abmil",), head=QUICK, nested=nested, baselines=False, unfrozen=True)
    console = Counting()
    kept = (hierarchy / "region" / "model" / "model.safetensors").read_bytes()
    found = api.finetune_slides(hierarchy, slide_table, out=tmp_path / "out", options=options, console=console)
    names = list(dict.fromkeys(row["model"] for row in found.rows))
    assert names == ["hierarchy, abmil", "hierarchy, mean", "hierarchy, region level fine-tuned, abmil"]
    assert (hierarchy / "region" / "model" / "model.safetensors").read_bytes() == kept
    assert [line for line in console.messages if line.startswith("training ")] == [f"training {name}" for name in names]
    folds = [(step, total) for step, total, logs in console.seen if "folds" in logs]
    assert folds[0] == (0, 6) and folds[-1] == (6, 6) and [step for step, _ in folds] == sorted(s for s, _ in folds)
    steps = [(step, total) for step, total, logs in console.seen if "loss" in logs]
    assert steps[:2] == [(1, 2), (2, 2)] and len(steps) >= 2 * 2  # each training of each fold
    # Before anything is learned, the regions are those that embedding wrote.
    loaded, (tile_file, region_file) = train_levels.load(hierarchy), files_of(hierarchy, "slide0")
    regions = regions_of(loaded.region, tile_file, side=loaded.side, min_tissue=loaded.min_tissue)
    with torch.inference_mode():
        grid = vectors_as_grids(loaded.region.model.backbone.eval().cpu(), [regions])[0, :-1]
    held = load_parquet(region_file)
    y, x = regions.cells.T
    assert np.allclose(grid[:, y, x].T.numpy(), held.features, atol=0.05)  # they were written in half precision


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "5"], "--steps has no effect on the heads of a hierarchy"),
        (["--patience", "5", "--size", "64"], "--patience, --size have no effect"),  # 5 is what it would be anyway
        (["--validation", "0.3", "--resume"], "--validation, --resume have no effect"),
        (["--set", "train.steps=5"], "train.steps has no effect"),
        (["--set", "data.validation=0.3"], "data.validation has no effect"),
        (["--set", "seed=a"], "train.seed must be an integer"),
        (["--fractions", "half"], "--fractions takes numbers"),
    ],
)
def test_options_of_images_are_refused_for_heads_in_the_words_that_were_typed(words, said, hierarchy, tmp_path):
    call = ["finetune", str(hierarchy), str(tmp_path), "--out", str(tmp_path / "out"), *words]
    error = CliRunner().invoke(app.app, call).exception
    assert isinstance(error, UsageError) and said in str(error), error
    assert "no effect" not in said or "--folds" in str(error) or "data.label" in str(error)
    assert not (tmp_path / "out").exists()


def test_options_of_heads_are_refused_for_a_single_network(tmp_path):
    call = ["finetune", "random:vit_nano_patch8", "synthetic:tissue?n=8", "--out", str(tmp_path / "o"), "--folds", "5"]
    error = CliRunner().invoke(app.app, call).exception
    assert isinstance(error, UsageError) and "--folds has no effect on a single network" in str(error)


def test_heatmaps_at_each_level(hierarchy, finetuned):
    loaded, kept = train_levels.load(hierarchy), load_head(finetuned[0])
    assert kept.classes == ("coarse", "fine")
    for head in (None, kept.head):
        maps = attend_slide(loaded, *files_of(hierarchy, "slide0"), head)  # type: ignore[call-arg]
        assert len(maps.tile.coords) == len(maps.composed.scores)
        if head is None:  # all regions would be 1: no result
            assert maps.region is None and "no attention over regions" in maps.text and "tile" in maps.named()
        else:
            assert maps.tile.side_px * 4 == maps.region.side_px and "weighed by the trained head" in maps.text
            assert maps.region.scores.mean() == pytest.approx(1, abs=1e-4)
        assert maps.tile.scores.mean() == pytest.approx(1, abs=1e-4)
        assert maps.composed.scores.mean() == pytest.approx(1, abs=1e-4)
        if head is None:  # regions weighted equally: a tile's weight does not depend on the size of its region
            ratio = maps.composed.scores / maps.tile.scores
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_maps_become_files(hierarchy, finetuned, slide_table, tmp_path):
    found = api.attend_hierarchy(finetuned[0], slide_table / "slide0.tif")
    assert ["region" in one.heat.name for one in found] == [True, True, True] and "head" in found[0].heat.name
    assert all((tmp_path / name).exists() for name in [path.name for path in found[2].save(tmp_path / "m.png")])
    assert [one.to_dict()["level"] for one in found] == ["region", "tile", "composed"]
    (regions,) = api.attend_hierarchy(finetuned[0], slide_table / "slide0.tif", level="region")
    assert len(regions.heat.scores) == len(load_parquet(files_of(hierarchy, "slide0")[1]).coords)
    found = api.attend_hierarchy(hierarchy, slide_table / "slide0.tif")
    assert [one.options.level for one in found] == ["tile", "composed"]
    with pytest.raises(UsageError, match=r"no attention over regions[\s\S]*saccade finetune"):
        api.attend_hierarchy(hierarchy, slide_table / "slide0.tif", level="region")
    with pytest.raises(UsageError, match="no attention"):
        api.attend_hierarchy(hierarchy, slide_table / "slide0.tif", level="patch")
    with pytest.raises(UsageError, match="unknown level"):
        api.attend_hierarchy(hierarchy, slide_table / "slide0.tif", level="planet")


def test_what_is_left_out_and_what_was_there_is_said(hierarchy, tmp_path):
    pixels = np.full((288, 320, 3), 243, np.uint8)
    pixels[:272, :288] = texture(288, 320, seed=9)[:272, :288]  # 9 rows of 9 tiles, regions of 4 x 4
    write_slide(tmp_path / "uneven.tif", pixels, level_px=((144, 160),))
    first, second = Quiet(), Quiet()
    found = api.attend_hierarchy(hierarchy, tmp_path / "uneven.tif", level="tile", console=first)
    total = len(load_parquet(files_of(hierarchy, "uneven")[0]))
    left = total - len(found[0].heat.scores)
    assert left > 0 and f"{left} of {total} tiles are in regions with too little tissue" in first.messages[-1]
    assert not any("reused" in line for line in first.messages)
    api.attend_hierarchy(hierarchy, tmp_path / "uneven.tif", level="tile", console=second)
    assert [line.split(":")[0] for line in second.messages if "reused" in line] == ["tile level", "region level"]


def test_a_patient_is_known_by_any_slide_and_copies_stay_together(tmp_path):
    """The hierarchy may have been trained without a column of patients; a file may be there twice."""
    (tmp_path / "hierarchy.yaml").write_text("data: x\n")
    files = [{"id": "a1.svs", "sha256": "h0", "group": "a1.svs"}]
    run_folder.write_json(tmp_path / "data.json", {"source": "x", "files": files, "ancestors": []})
    rows = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("copy of b1", None), ("d1", "d"), ("e1", "e")]
    records = [Record(f"{name}.svs", label="xy"[k % 2], group=group) for k, (name, group) in enumerate(rows)]
    hashes = ["h0", "h1", "h2", "h3", "h2", "h5", "h6"]
    tiles = SimpleNamespace(entries=[SimpleNamespace(record=record) for record in records], hashes=hashes)
    found, places, marked = cohort_of(tiles, list(range(7)), tmp_path, False)
    assert found.testable.tolist() == [False, False, True, True, True, True, True] and not marked
    assert places.tolist() == list(range(7))
    assert found.groups[2] == found.groups[4] and len(set(found.groups)) == 5
    for train, test in outer_folds(found, 3, 0):
        assert (2 in test) == (4 in test) and (2 in train) == (4 in train)


def test_slides_that_were_learned_from_are_not_tested_on(slide_table, tmp_path):
    run = api.pretrain(slide_table, out=tmp_path / "run", backbone="hipt", settings=SETTINGS)
    nested = NestedConfig(folds=2, inner=2, fractions=(1.0,), bootstrap=20)
    with pytest.raises(ContaminationError, match="pretrained on all"):
        api.finetune_slides(run, slide_table, out=tmp_path / "a", options=HeadOptions(nested=nested))
    options = HeadOptions(heads=("abmil",), head=QUICK, nested=nested, allow_overlap=True, baselines=False)
    found = api.finetune_slides(run, slide_table, out=tmp_path / "b", options=options)
    assert all(row["overlap"] for row in found.rows) and "WARNING" in found.protocol["text"]


def test_a_hierarchy_is_no_network(hierarchy, slide_table):
    with pytest.raises(ModelError, match="a hierarchy, not a single network"):
        api.evaluate([hierarchy], slide_table)


def test_one_vector_a_slide(hierarchy, slide_table):
    table = api.embed(hierarchy, slide_table, out=slide_table.parent / "slides.parquet")
    with pytest.raises(UsageError, match=r"vectors of slides cannot be written as slides\.h5[\s\S]*FILE\.parquet"):
        api.embed(hierarchy, slide_table, out=slide_table.parent / "slides.h5")
    assert table.features.shape == (8, 32) and set(table.labels) == {"fine", "coarse"} and len(set(table.hashes)) == 8


def test_grey_has_no_effect_on_a_hierarchy_and_is_refused(hierarchy, slide_table):
    with pytest.raises(UsageError, match="leave out --grey"):
        api.embed(hierarchy, slide_table, grey=True)


def test_a_slide_finds_itself_among_slides(hierarchy, slide_table, tmp_path):
    place, asked = tmp_path / "slides.parquet", slide_table / "slide2.tif"
    api.embed(hierarchy, slide_table, out=place)
    found = api.search(hierarchy, asked, store=place)
    assert (
        found.neighbours.hits[0]["id"] == "slide2.tif" and found.neighbours.similarities[0] > 0.9999 and found.same[0]
    )
    assert found.save_sheet(tmp_path / "like.png") == [] and (tmp_path / "like.png").stat().st_size > 0
    with pytest.raises(UsageError, match="hierarchy takes a slide"):
        api.search(hierarchy, tmp_path / "like.png", store=place)
    with pytest.raises(ModelError, match="whole slides"):
        api.search("random:vit_micro_patch8", tmp_path / "like.png", store=place)
    table = load_table(place)
    save_table(place, dataclasses.replace(table, about=table.about | {"weights": "0"}))
    with pytest.raises(ModelError, match="another model"):
        api.search(hierarchy, asked, store=place)


# --- the price -----------------------------------------------------------------------------------


def test_the_plan_counts_what_the_hierarchy_then_has(hierarchy, slide_table):
    """The price of each level is that of the run it becomes, on as many regions."""
    data = read_request(hierarchy).data
    found = api.plan(data, backbone="hipt", settings=SETTINGS, options=PlanOptions(measure=False))
    record = run_folder.read_json(hierarchy / "data.json")["slides"]["slides"]
    region = run_folder.read_json(hierarchy / "region" / "data.json")
    assert (found.slides, found.tiles) == (4, sum(line["tiles"] for line in record))
    assert found.regions == found.levels["region"].images == region["used"] and list(found.levels) == ["region"]
    assert found.levels["region"].load.network.channels == region["channels"]
    parameters = sum(v.size for v in load_file(hierarchy / "region" / "model" / "model.safetensors").values())
    assert found.levels["region"].price.parameters == parameters and found.flops > 0
    text = found.text()
    assert "--- region level" in text and "No slide level" in text and found.to_dict()["levels"]["region"]["tokens"]


def test_the_plan_of_a_whole_hierarchy(slide_table):
    """A tile level of its own, as its slides are cut; with few regions the plan says that they are too few."""
    own = {"tile.model.backbone": "resnet10_w8", "data.tile_px": 32, "data.mpp": 0.5, "model.size_px": 32}
    options = PlanOptions(measure=False)
    found = api.plan(slide_table, backbone="hipt", settings=own | {"hipt.region_px": 128}, options=options)
    assert found.levels["tile"].images == found.tiles and found.levels["tile"].load.network.size_px == 32
    few = api.plan(slide_table, backbone="hipt", settings=own | {"hipt.region_px": 1024}, options=options)
    assert "TOO FEW" in few.text() and "region" not in few.levels
    with pytest.raises(UsageError, match="needs slides"):
        api.plan(backbone="hipt")
