"""Features of slides: files as TRIDENT has them, what is embedded twice, a training that reads while it goes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from made_slides import on_glass, texture, with_holes, write_slide
from saccade import api
from saccade.base import config
from saccade.base.run_folder import read_json, read_metrics
from saccade.data.cache.slide_cache import stream_tiles
from saccade.data.feature_grids import GridSource, cells_of
from saccade.data.open import open_source
from saccade.data.slide_features import SlideFeatures, about_step, load_features, load_h5, save_features, step_of
from saccade.data.slides import streaming
from saccade.data.slides.streaming import TileSpec, TileStore
from saccade.data.slides.tiling import Tiling
from saccade.errors import DataError, StorageError, TooManyDamaged, UsageError
from saccade.evaluation.protocol import ProtocolConfig
from saccade.features.embed_slides import EmbeddedSlides, Embedder
from saccade.features.table import l2_normalize, load_table
from saccade.tasks.evaluate import EvaluateOptions
from saccade.tasks.finetune import FinetuneOptions
from saccade.train.loop import Quiet

CUT = Tiling(mpp=1.0, tile_px=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("slides")
    for number in range(3):
        pixels = on_glass(texture(500, 620, seed=number), 50)
        write_slide(place / f"slide-{number}.tif", pixels, level_px=((250, 310),))
    return place


@pytest.fixture
def tiles(folder):
    return open_source(folder, tiling=CUT)


# --- files --------------------------------------------------------------------------------------


def test_hdf5_is_what_trident_users_have(folder, tmp_path):
    found = api.embed("random:vit_micro_patch8", folder, out=tmp_path / "features.h5", tiling=CUT)
    assert isinstance(found, EmbeddedSlides) and [f.name for f in found.files] == [f"slide-{n}.h5" for n in range(3)]
    with h5py.File(found.files[0]) as file:
        assert file["coords"].dtype == np.int64 and file["features"].dtype == np.float32
        assert len(file["coords"]) == len(file["features"]) and file["features"].ndim == 2
        told = dict(file["coords"].attrs)
    assert (told["patch_size"], told["patch_size_level0"], told["overlap"]) == (32, 64, 0)
    assert (told["level0_magnification"], told["target_magnification"], told["name"]) == (20, 10.0, "slide-0")
    assert (told["level0_height"], told["level0_width"]) == (500, 620)
    again = load_h5(found.files[0])
    source = open_source(folder, tiling=CUT)
    assert np.array_equal(again.coords, source.grid(0).coords) and again.about["group"] == "slide-0.tif"


def test_a_second_pass_is_free_and_a_stopped_one_goes_on(folder, tmp_path):
    out = tmp_path / "features"
    api.embed("random:vit_micro_patch8", folder, out=out, tiling=CUT)
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "slide-1.parquet").unlink()
    found = api.embed("random:vit_micro_patch8", folder, out=out, tiling=CUT)
    same = [file for file, made in times.items() if file.exists() and file.stat().st_mtime_ns == made]
    assert found.skipped == len(same) == 2 and (out / "slide-1.parquet").exists()


def test_one_table_has_every_tile(folder, tmp_path, tiles):
    api.embed("random:resnet10_w8", folder, out=tmp_path / "all.parquet", tiling=CUT)
    table = load_table(tmp_path / "all.parquet")
    assert table.ids == [record.id for record in tiles.records] and len(set(table.hashes)) == 3
    with pytest.raises(UsageError, match="need an output file"):
        api.embed("random:resnet10_w8", folder, tiling=CUT)


@pytest.mark.parametrize("name", ["tiles.parquet", "base/tiles.lance"])
def test_a_tile_finds_itself_in_a_table_of_tiles_and_is_shown(folder, tmp_path, tiles, name):
    if name.endswith(".lance"):
        pytest.importorskip("lancedb", reason='many rows need pip install "saccade[search]"')
    place, asked = tmp_path / name, tmp_path / "tile.png"
    Image.fromarray(tiles.read(3).pixels.transpose(1, 2, 0)).save(asked)
    api.embed("random:vit_micro_patch8", folder, out=place, tiling=CUT)
    found = api.search("random:vit_micro_patch8", asked, store=str(place))
    assert found.neighbours.hits[0]["id"] == tiles.records[3].id and found.neighbours.similarities[0] > 0.9999
    hit = found.neighbours.hits[0]
    assert np.array_equal(found.pictures.pixels(str(hit["id"]), hit["sha256"]), tiles.read(3).pixels)


@pytest.mark.parametrize("name", ["tiles.parquet", "base/tiles.lance"])
def test_a_table_that_is_there_is_left_until_something_else_is_asked_for(folder, tmp_path, name, monkeypatch):
    if name.endswith(".lance"):
        pytest.importorskip("lancedb", reason='many rows need pip install "saccade[search]"')
    place, slides, console = str(tmp_path / name), tmp_path / "slides", Quiet()
    shutil.copytree(folder, slides)

    def embedded(model="random:vit_micro_patch8", **others):
        return api.embed(model, slides, out=place, **{"tiling": CUT, "console": console} | others)

    first = embedded()
    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "features", lambda *_: pytest.fail("tiles were embedded again"))
        again = embedded()
    assert (again.skipped, again.tiles, again.width) == (3, first.tiles, first.width) and first.skipped == 0
    assert console.messages == [f"{place} is up to date and is skipped"]
    assert embedded(tiling=dataclasses.replace(CUT, min_tissue=0.9)).skipped == 0  # other tiles
    assert embedded().skipped == 0 and embedded().skipped == 3
    assert embedded("random:vit_micro_patch16").skipped == 0  # other weights
    assert embedded().skipped == 0 and embedded(grey=True).skipped == 0  # other input
    assert embedded().skipped == 0
    (slides / "slide-0.tif").write_bytes((slides / "slide-1.tif").read_bytes())  # other content under the same name
    assert embedded().skipped == 0 and embedded().skipped == 3
    (slides / "manifest.csv").write_text("path,label\n" + "".join(f"slide-{n}.tif,{n}\n" for n in range(3)))
    assert embedded().skipped == 0  # other labels


def test_files_of_other_programs_are_read(tmp_path):
    coords, features = np.array([[0, 512], [512, 0]]), np.ones((1, 2, 8), np.float32)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["features"] = features
        file["coords"] = coords
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20})
    found = load_features(tmp_path / "theirs.h5")
    assert found.features.shape == (2, 8) and found.coords.tolist() == coords.tolist()
    assert found.about == {"slide": "theirs", "tile_px": 256, "tile_px_level0": 512.0, "mpp": 0.5}
    (tmp_path / "bad.h5").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad\.h5 is not a feature file"):
        load_features(tmp_path / "bad.h5")


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_both_forms_keep_everything(tmp_path, suffix):
    about = {"slide": "a.svs", "mpp": 0.5, "tile_px": 256, "tile_px_level0": 513.02, "label": None, "slide_px": [9, 8]}
    made = SlideFeatures(np.array([[3, 4]], np.int64), np.array([[1.5, 2]], np.float32), about)
    save_features(tmp_path / f"a{suffix}", made)
    found = load_features(tmp_path / f"a{suffix}")
    assert found.about == about and np.array_equal(found.features, made.features) and found.coords.tolist() == [[3, 4]]


@pytest.mark.parametrize("name", ["foo.txt", "f.hdf5", "there.h5", "there.parquet"])
def test_names_that_say_another_form_are_refused_before_anything_is_computed(folder, tmp_path, name, monkeypatch):
    (tmp_path / "there.h5").touch()
    (tmp_path / "there.parquet").mkdir()
    monkeypatch.setattr("saccade.tasks.embed.open_source", lambda *_, **__: pytest.fail("slides were opened"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=name):
        api.embed("random:vit_micro_patch8", folder, out=tmp_path / name, tiling=CUT)
    assert sorted(tmp_path.iterdir()) == before


def test_features_of_images_are_no_hdf5(tmp_path):
    for name in ("a.h5", "a"):
        with pytest.raises(UsageError, match=r"features of images[\s\S]*FILE\.parquet or"):
            api.embed("random:vit_micro_patch8", "synthetic:tissue?n=8", out=tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- reading while training ----------------------------------------------------------------------


def test_what_the_processes_read_is_what_the_source_reads(tiles):
    store = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=2, max_bad=0, say=print)
    wanted = np.array([5, 0, len(tiles) - 1, 5])
    store.expect(wanted[:2])
    found = store.images(wanted)
    assert np.array_equal(found, np.stack([tiles.read(int(i)).pixels for i in wanted]))
    store.close()
    with pytest.raises(StorageError, match="process that reads slides ended"):
        store.images(np.array([7]))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the state of a process is read from /proc")
def test_a_process_that_was_stopped_is_noticed_and_can_go_on(tiles, monkeypatch):
    monkeypatch.setattr(streaming, "STOPPED_S", 1)
    store = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=1, max_bad=0, say=print)
    store.images(np.array([0]))
    pid = store._children[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StorageError, match="a process that reads slides is stopped") as caught:
        store.images(np.array([3]))
    assert f"kill -CONT {pid}" in str(caught.value)
    os.kill(pid, signal.SIGCONT)
    assert np.array_equal(store.images(np.array([3]))[0], tiles.read(3).pixels)
    store.close()


@pytest.fixture(scope="module")
def oblong(tmp_path_factory):
    """A slide whose pixels are 0.5 micrometres wide and 0.6 high."""
    path = tmp_path_factory.mktemp("oblong") / "oblong.tif"
    tags = {"resolution": (1e4 / 0.5, 1e4 / 0.6), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, on_glass(texture(900, 700, grain=2.0), 40), tile=(128, 128), photometric="rgb", **tags)
    return path


def test_pixels_that_are_not_square_are_read_alike_by_every_process(oblong):
    tiles = open_source(oblong, tiling=CUT)
    assert tiles.slides[0].spacing_um == pytest.approx((0.6, 0.5))
    store = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=1, max_bad=0, say=print)
    chosen = np.array([3, len(tiles) // 2, len(tiles) - 1])
    assert np.array_equal(store.images(chosen), np.stack([tiles.read(int(k)).pixels for k in chosen]))


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_rows_of_a_slide_whose_pixels_are_not_square_keep_their_places(oblong, tmp_path, suffix):
    grid = open_source(oblong, tiling=CUT).grid(0)
    about = {"slide": "oblong.tif", "mpp": 1.0, "tile_px": 32, **about_step(*grid.step_px)}
    file = tmp_path / f"oblong{suffix}"
    save_features(file, SlideFeatures(grid.coords, np.eye(len(grid), 8, dtype=np.float32), about))
    found = load_features(file)
    assert step_of(found.about) == grid.step_px and grid.step_px == pytest.approx((32 / 0.6, 32 / 0.5))
    assert np.array_equal(cells_of(found), grid.cells)
    blocks = GridSource("x", [file], side=4, min_fraction=0.25)
    assert len({block.top for block in blocks.blocks}) > 2
    for (x, y), block in zip(blocks.places, blocks.blocks):
        assert (x, y) == (round(block.left * grid.step_px[1]), round(block.top * grid.step_px[0]))
    square = SlideFeatures(found.coords, found.features, {"tile_px_level0": 64.0})
    assert step_of(square.about) == (64.0, 64.0) and about_step(64.0, 64.0) == {"tile_px_level0": 64.0}


def test_features_of_a_slide_whose_pixels_are_not_square_are_made_again_where_rows_were_lost(oblong, tmp_path):
    """Files of before say the width of a tile alone, and their tiles were read as high as wide."""
    out = tmp_path / "features.h5"
    (file,) = api.embed("random:vit_micro_patch8", oblong, out=out, tiling=CUT).files
    right = load_features(file)
    about = {name: value for name, value in right.about.items() if name != "tile_px_level0_y"}
    save_features(file, SlideFeatures(right.coords, right.features + 1, about))
    assert api.embed("random:vit_micro_patch8", oblong, out=out, tiling=CUT).skipped == 0
    assert np.array_equal(load_features(file).features, right.features)
    assert api.embed("random:vit_micro_patch8", oblong, out=out, tiling=CUT).skipped == 1


def test_neighbours_go_to_one_process(tiles):
    """They share what is decoded; and no process has more to do than another."""
    store = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=2, max_bad=0, say=print)
    asked: list[list[int]] = []
    store._ask = lambda child, numbers: (asked.append(list(numbers)), child.asked.extend(numbers))
    store.expect(np.array([9, 0, 8, 1, 2]))
    store.expect(np.array([9, 3]))
    assert asked == [[0, 1, 2], [8, 9], [3]]
    store.close()


def test_processes_that_read_begin_light():
    """Each of them is one more start: torch, scipy and the readers of other files would be a second of it."""
    code = (
        "import sys, saccade.data.slides.tile_worker; print(*sorted({'torch', 'scipy', 'pydicom'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_known_background_is_not_looked_for(tiles, monkeypatch):
    slide = tiles.slides[0]
    monkeypatch.setattr(type(slide.reader), "read", lambda *_: pytest.fail("a place was read"))
    assert slide.background == 255


def test_damaged_tiles_are_named_and_bounded(folder, tmp_path):
    said: list[str] = []
    path = tmp_path / "slide.tif"
    path.write_bytes((folder / "slide-0.tif").read_bytes())
    tiles = open_source(path, tiling=CUT)
    with_holes(path, path, (0,), level=1)  # damaged after the look at the slide, in the level that is read
    store = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=1, max_bad=1.0, say=said.append)
    found = store.images(np.arange(len(tiles)))
    assert len(found) == len(tiles) and 0 < len(store.failed) < len(tiles) and "cannot be read" in said[0]
    strict = TileStore(tiles, TileSpec(32, 3, np.dtype(np.uint8)), workers=1, max_bad=0.0, say=said.append)
    with pytest.raises(TooManyDamaged, match=r"1 of \d+ tiles"):
        strict.images(np.arange(len(tiles)))


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """A slide of one level, whole and with two of its 36 stored tiles damaged: 8 of 144 tiles of 64 pixels."""
    place = tmp_path_factory.mktemp("holed")
    whole = write_slide(place / "whole.tif", texture(768, 768))
    return whole, with_holes(whole, place / "holed.tif", (0, 14))


FINE = Tiling(mpp=0.5, tile_px=64, min_tissue=0.0)


def test_a_damaged_spot_is_left_out_and_every_vector_stands_at_its_own_place(holed, tmp_path):
    """Another tile's vector used to stand there, or the whole slide was lost."""
    console = Quiet()
    out, model = tmp_path / "f.h5", "random:vit_micro_patch8"
    with pytest.raises(TooManyDamaged, match=r"holed\.tif: 8 of 144 tiles \(5\.6% or more\) cannot be read"):
        api.embed(model, holed[1], out=out, tiling=FINE)
    found = api.embed(model, holed[1], out=out, tiling=FINE, max_bad=0.1, console=console)
    assert isinstance(found, EmbeddedSlides) and found.tiles == 136
    (line,) = (line for line in console.messages if "skipped" in line)
    assert line.startswith(
        "holed.tif: 8 of 144 tiles cannot be read and are skipped; the first: cannot be read at 0, 0"
    )
    api.embed(model, holed[0], out=out, tiling=FINE)
    whole, rest = load_h5(out / "whole.h5"), load_h5(out / "holed.h5")
    damaged = [(x, y) for left, top in ((0, 0), (256, 256)) for x in (left, left + 64) for y in (top, top + 64)]
    kept = [k for k, (x, y) in enumerate(whole.coords.tolist()) if (x, y) not in damaged]
    assert len(kept) == 136 and np.array_equal(rest.coords, whole.coords[kept])
    assert rest.about["tiles"] == 144 and rest.about["left_out"] == 8
    similar = (l2_normalize(rest.features) * l2_normalize(whole.features[kept])).sum(axis=1)
    assert similar.min() > 0.999  # the statistics that random weights take from the tiles differ by a little
    again = api.embed(model, holed[1], out=out, tiling=FINE, max_bad=0.1)
    assert isinstance(again, EmbeddedSlides) and (again.skipped, again.tiles) == (1, 136)
    table = tmp_path / "t.parquet"
    assert api.embed(model, holed[1], out=table, tiling=FINE, max_bad=0.1).tiles == len(load_table(table)) == 136
    again = api.embed(model, holed[1], out=table, tiling=FINE, max_bad=0.1)
    assert (again.skipped, again.tiles) == (1, 136)


def test_a_training_begins_although_its_first_tile_is_damaged(holed):
    """Mean and spread are of tiles that can be read; in a batch another tile stands for a damaged one."""
    said: list[str] = []
    whole, damaged = (
        stream_tiles(open_source(path, tiling=FINE), cache_px=64, workers=1, max_bad=0.1, say=said.append)
        for path in holed
    )
    assert damaged.mean == pytest.approx(whole.mean, abs=0.01) and len(damaged) == 144
    assert len(said) == 8 and all("replaced by another of its batch" in line for line in said)
    batch = damaged.batch(np.array([0, 5])).pixels
    assert batch[0].equal(batch[1])


def test_processes_end_with_the_store(tiles):
    cache = stream_tiles(tiles, cache_px=32, workers=1, max_bad=0, say=print)
    assert cache.streamed and len(cache) == len(tiles) and cache.mean != ()
    child = cache.flat._children[0].process
    cache.flat.close()
    for _ in range(50):
        if child.poll() is not None:
            break
        time.sleep(0.1)
    assert child.poll() is not None


@pytest.mark.parametrize("stream", [False, True], ids=["decoded", "streamed"])
def test_pretraining_reads_slides(folder, tmp_path, stream):
    """A resumed run sees what an uninterrupted one does, also when tiles are read while it goes."""
    settings = {"train.batch": 8, "train.steps": 4, "model.size_px": 32, "dino.out_dim": 32, "data.stream": stream}
    settings |= {"data.mpp": 1.0, "data.tile_px": 32, "views.local_count": 1, "train.evaluate_every": 4}
    whole = api.pretrain(folder, out=tmp_path / "a", backbone="vit_micro_patch8", settings=settings)
    data = read_json(whole / "data.json")
    assert [file["id"] for file in data["files"]] == [f"slide-{n}.tif" for n in range(3)] and data["duplicates"] == []
    losses = [line["loss"] for line in read_metrics(whole / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4
    for folder_ in sorted((whole / "checkpoints").glob("step-*"))[1:]:
        for file in folder_.iterdir():
            file.unlink()
        folder_.rmdir()
    api.resume(whole)
    again = [line["loss"] for line in read_metrics(whole / "metrics.jsonl") if "loss" in line]
    assert again == losses
    found = api.embed(whole, folder, out=tmp_path / "f.h5")  # cut as the run had them
    assert json.loads(json.dumps(load_h5(found.files[0]).about))["tile_px"] == 32


def test_a_resolution_that_was_told_holds_for_the_slides_it_was_told_of(tmp_path):
    """A run that was given one for its slides does not give it to others: it is never guessed."""
    own, other = tmp_path / "own", tmp_path / "other"
    for place, seed in ((own, 1), (other, 2)):
        place.mkdir()
        write_slide(place / "plain.tif", on_glass(texture(500, 620, seed=seed), 50), um=None, level_px=((250, 310),))
    settings = {"train.batch": 4, "train.steps": 1, "model.size_px": 32, "dino.out_dim": 32, "views.local_count": 1}
    settings |= {"data.mpp": 1.0, "data.tile_px": 32, "data.slide_mpp": 0.5}
    run = api.pretrain(own, out=tmp_path / "run", backbone="vit_micro_patch8_w32", settings=settings)
    (own / "plain.tif").rename(own / "by another name.tif")
    found = api.embed(run, own, out=tmp_path / "own.h5")
    assert load_h5(found.files[0]).about["tile_px_level0"] == 64
    with pytest.raises(DataError, match=r"resolution unknown: plain\.tif"):
        api.embed(run, other, out=tmp_path / "other.h5")
    found = api.embed(run, other, out=tmp_path / "other.h5", tiling=Tiling(slide_mpp=0.25))
    assert load_h5(found.files[0]).about["tile_px_level0"] == 128


def test_slides_are_cut_alike_for_training_measuring_and_pictures(tmp_path):
    rows = ["path,label,patient"]
    for number in range(6):
        write_slide(tmp_path / f"{number}.tif", on_glass(texture(500, 620, seed=number), 50), level_px=((250, 310),))
        rows.append(f"{number}.tif,{'ab'[number % 2]},p{number}")
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    data, model = tmp_path / "slides.csv", "random:vit_micro_patch8_w32"
    test_part = len(open_source(data, group="patient", tiling=CUT)) // 3
    cut = {"data.mpp": CUT.mpp, "data.tile_px": CUT.tile_px, "model.size_px": 32}
    settings = cut | {"data.group": "patient", "train.steps": 1, "train.batch": 4}
    run = tmp_path / "run"
    assert api.finetune(model, data, out=run, settings=settings).n_test == test_part
    options = EvaluateOptions(group="patient", tiling=CUT, baselines=False, protocol=ProtocolConfig(fractions=(1.0,)))
    assert api.evaluate([model], data, options=options).protocol["n_test"] == test_part
    other = tmp_path / "other"
    api.finetune(
        run,
        data,
        out=other,
        settings={"data.group": "patient", "train.steps": 1, "train.batch": 4},
        options=FinetuneOptions(allow_overlap=True),
    )
    assert config.load(other / "config.yaml")["data"]["tile_px"] == CUT.tile_px  # as the weights learned
    page, _ = api.report_interactive(run, tmp_path / "page.html")
    assert ".tif#" in page.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="a whole-slide image cannot go"):
        api.report_interactive(run, tmp_path / "slide.html", images=[tmp_path / "0.tif"])


def test_settings_of_slides_are_refused_for_other_images(tmp_path):
    with pytest.raises(UsageError, match=r"data\.workers is for slides"):
        api.pretrain("synthetic:tissue?n=32", out=tmp_path / "a", settings={"data.workers": 2})
