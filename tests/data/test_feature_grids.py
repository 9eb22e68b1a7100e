"""Grids of vectors as a source: blocks of the lattice, missing tiles, views of whole tiles, and a whole run."""

import numpy as np
import pytest
import torch

from feature_files import STEP, features
from saccade.api import embed, pretrain, show
from saccade.augment.settings import ViewsConfig, resolve_grid_views
from saccade.augment.views import make_views, plain_view
from saccade.base import run_folder
from saccade.base.config import load
from saccade.base.contracts import InputSpec
from saccade.data.cache.image_cache import build_cache
from saccade.data.feature_grids import open_grids, write_grids
from saccade.data.open import open_source
from saccade.data.slide_features import SlideFeatures, load_features, read_about, save_h5
from saccade.errors import DamagedFile, DataError, TooManyDamaged, UsageError
from saccade.features.embed_images import Decoded, embed_baselines


@pytest.fixture
def folder(tmp_path):
    files = [features(tmp_path / f"s{i}.parquet", seed=i, label="ab"[i % 2])[0] for i in range(4)]
    return write_grids(tmp_path / "grids", files, side=4, min_fraction=0.5)


def trident(folder, *, slides=4, width=6):
    """Features as TRIDENT writes them: nothing of ours in them, tiles of 256 pixels at 20x on slides of 40x."""
    h5py = pytest.importorskip("h5py", reason='HDF5 needs pip install "saccade[slides]"')
    folder.mkdir()
    cells = np.argwhere(np.ones((16, 32)))
    for number in range(slides):
        with h5py.File(folder / f"slide-{number}.h5", "w") as file:
            coords = file.create_dataset("coords", data=(cells[:, ::-1] * 512).astype(np.int64))
            coords.attrs.update({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20, "overlap": 0})
            vectors = np.random.default_rng(number).normal(size=(len(cells), width)).astype(np.float32)
            file.create_dataset("features", data=vectors)
    return folder


def test_features_of_another_program_are_a_source(tmp_path):
    folder, table = trident(tmp_path / "features"), tmp_path / "labels.csv"
    source = open_source(folder)
    assert len(source) == 8 and source.side == 16 and {r.label for r in source.records} == {None}
    assert source.records[1].id == "slide-0#8192,0" and source.records[1].group == "slide-0"
    assert len({source.content_hash(i) for i in range(8)}) == 8
    assert source.read(0).pixels.shape == (7, 16, 16) and source.read(0).pixels[-1].all()
    rows = ["path,class,patient", "slide-0.svs,a,p", "b/slide-1.svs,b,q", "slide-3.svs,a,r"]
    table.write_text("\n".join(rows))
    labelled = open_source(folder, manifest=table)
    assert [(r.label, r.group) for r in labelled.records][::2] == [("a", "p"), ("b", "q"), ("a", "r")]
    table.write_text("path,class\nslide-9.svs,a")
    with pytest.raises(DataError, match="slide-9"):
        open_source(folder, manifest=table)
    with pytest.raises(DataError, match="no table of columns"):
        open_source(folder, label="class")


def test_features_of_another_program_are_shown_as_slides_and_regions(tmp_path):
    folder, table = trident(tmp_path / "features"), tmp_path / "features" / "manifest.csv"
    found = show(folder)
    assert "  tiles       2,048 of 256 px at 0.5 um/px (128 um a side, 512 px of level 0)" in found.text()
    assert "  vectors     6 numbers" in found.text() and "8 of 16 x 16 tiles, at least 25% of them" in found.text()
    assert "channels" not in found.text() and "images" not in found.text() and found.groups == 4
    one = found.to_dict()["slides"][0]
    assert (one["id"], one["tiles"], one["regions"], one["numbers"]) == ("slide-0", 512, 2, 6)
    table.write_text("path,label,patient\n" + "\n".join(f"slide-{n}.svs,{'ab'[n % 2]},p{n // 2}" for n in range(4)))
    found = show(folder)
    assert (found.labels, found.groups) == ({"a": 2, "b": 2}, 2)
    with pytest.raises(UsageError, match="--sheet has no effect on features"):
        show(folder, sheet=tmp_path / "sheet.png")


def test_what_is_wrong_with_features_is_said(tmp_path):
    h5py = pytest.importorskip("h5py", reason='HDF5 needs pip install "saccade[slides]"')
    folder = trident(tmp_path / "features")
    with h5py.File(folder / "slide-1.h5", "r+") as file:
        file["features"][3, 2] = np.nan
    with h5py.File(folder / "slide-2.h5", "r+") as file:
        del file["coords"].attrs["patch_size"], file["coords"].attrs["target_magnification"]
    with h5py.File(folder / "few.h5", "w") as file:  # no region of it is a quarter full; and other vectors
        coords = file.create_dataset("coords", data=np.zeros((1, 2), np.int64))
        coords.attrs.update({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20})
        file.create_dataset("features", data=np.ones((1, 7), np.float32))
    (folder / "twice.h5").write_bytes((folder / "slide-0.h5").read_bytes())
    said = show(folder).text()
    assert "DAMAGED     slide-1: NaN" in said and "NO REGION   1 slide: few" in said
    assert "slide-0, twice are the same slide" in said
    assert "(5 slides); 512 px of level 0, micrometres unknown (1 slide)" in said
    assert "7 numbers: 1 slide, 6 numbers: 5 slides; one network reads vectors of one length" in said


def test_the_baseline_of_grids_is_the_mean_of_their_vectors(tmp_path):
    folder, table = trident(tmp_path / "features"), tmp_path / "labels.csv"
    table.write_text("path,label\n" + "\n".join(f"slide-{n}.svs,{'ab'[n % 2]}" for n in range(4)))
    decoded = Decoded(open_source(folder, manifest=table), max_bad=0, report=None)
    found = embed_baselines(decoded, 16, grey=False)
    assert list(found) == ["mean of the vectors"]
    grid = decoded.source.read(0).pixels
    np.testing.assert_allclose(found["mean of the vectors"].features[0], grid[:-1].mean(axis=(1, 2)), atol=1e-5)


def test_a_network_learns_from_features_of_another_program(tmp_path):
    folder = trident(tmp_path / "features")
    settings = {"train.steps": 2, "train.batch": 4, "dino.out_dim": 16}
    run = pretrain(folder, out=tmp_path / "run", backbone="grid_nano", settings=settings)
    table = embed(run, folder)
    assert table.features.shape[0] == 8 and np.isfinite(table.features).all()


def test_a_block_holds_its_tiles(tmp_path, folder):
    """Every tile lies where its coordinates say; what is missing is zero and marked."""
    source = open_source(folder)
    assert len(source) == len(source.records) and {r.label for r in source.records} == {"a", "b"}
    assert len({source.content_hash(i) for i in range(len(source))}) == len(source)
    for index in range(len(source)):
        sample = source.read(index)
        assert sample.grid and sample.pixels.shape == (6, 4, 4) and sample.pixels.dtype == np.float32
        top, left = (round(v / STEP) for v in source.places[index][::-1])
        there = sample.pixels[-1] > 0
        assert there.mean() >= 0.5
        y, x = np.nonzero(there)
        assert np.array_equal(sample.pixels[0][there], y + top) and np.array_equal(sample.pixels[1][there], x + left)
        assert np.abs(sample.pixels[:, ~there]).max(initial=0) == 0
        assert sample.record.group.startswith("patient") and "#" in sample.record.id


def test_every_tile_of_a_slide_is_in_one_grid(tmp_path):
    file, cells = features(tmp_path / "s.parquet", missing=0.9)
    source = open_grids(write_grids(tmp_path / "whole", [file], side=0, min_fraction=0.0))
    sample = source.read(0)
    assert len(source) == 1 and sample.pixels[-1].sum() == len(cells)
    assert sample.pixels.shape[1:] == tuple(np.ptp(cells, axis=0) + 1)


def test_errors_name_what_is_wrong(tmp_path):
    file, _ = features(tmp_path / "s.parquet", missing=0.9)
    with pytest.raises(DataError, match="no grids"):
        open_grids(write_grids(tmp_path / "none", [file], side=8, min_fraction=0.9))
    place = write_grids(tmp_path / "gone", [file], side=4, min_fraction=0.1)
    file.unlink()
    with pytest.raises(DataError, match="missing feature files"):
        open_grids(place)


# --- views ---------------------------------------------------------------------------------------


def batch_of(folder):
    cache = build_cache(open_source(folder), cache_px=2)
    assert cache.grid and cache.shapes[0].tolist() == [6, 4, 4]  # cache_px reduces images, never grids
    return cache, cache.batch(np.arange(len(cache)))


def plain_spec(size_px: int = 4) -> InputSpec:
    return InputSpec(6, size_px, 0.0, 1.0, (0.0,) * 6, (1.0,) * 6, grid=True)


def test_statistics_are_those_of_the_tiles_that_are_there(folder):
    cache, _ = batch_of(folder)
    tiles = np.concatenate([cache.image(i)[:, cache.image(i)[-1] > 0] for i in range(len(cache))], axis=1)
    assert np.allclose(cache.mean[:-1], tiles[:-1].mean(axis=1), atol=1e-4) and cache.mean[-1] == 0
    assert np.allclose(cache.std[:-1], tiles[:-1].std(axis=1), atol=1e-4) and cache.std[-1] == 1


def test_views_move_whole_tiles(folder):
    """A view holds tiles of its own grid only, unchanged, at places that flips and turns lead to."""
    _, batch = batch_of(folder)
    config = resolve_grid_views(ViewsConfig(), size_px=4, local_count=2)
    assert (config.global_px, config.local_px) == (4, 2)
    for view in make_views(batch, config, plain_spec(), seed=1, step=2):
        for own, crop in zip(batch.pixels, view.pixels):
            tiles = {tuple(t) for t in own.flatten(1).T.tolist()}
            assert {tuple(t) for t in crop.flatten(1).T.tolist()} <= tiles
    once, again = (make_views(batch, config, plain_spec(), seed=1, step=2) for _ in range(2))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(once, again))


def test_views_without_turns_lie_where_their_box_says(folder):
    _, batch = batch_of(folder)
    config = resolve_grid_views(
        ViewsConfig(hflip=False, vflip=False, turn90=False, global_px=3), size_px=4, local_count=1
    )
    for view in make_views(batch, config, plain_spec(), seed=0, step=0):
        for own, crop, (top, left, height, width) in zip(batch.pixels, view.pixels, view.box.long().tolist()):
            assert torch.equal(own[:, top : top + height, left : left + width], crop)


def test_a_small_grid_lies_in_a_larger_crop(folder):
    _, batch = batch_of(folder)
    config = resolve_grid_views(ViewsConfig(global_px=6), size_px=4, local_count=0)
    (view, _) = make_views(batch, config, plain_spec(), seed=0, step=0)
    assert view.pixels.shape[-1] == 6
    assert torch.equal(view.pixels[:, -1].sum(dim=(1, 2)), batch.pixels[:, -1].sum(dim=(1, 2)))


def test_dropout_leaves_out_tiles_and_channels(folder):
    _, batch = batch_of(folder)
    config = resolve_grid_views(ViewsConfig(tile_dropout=0.5, vector_dropout=0.5), size_px=4, local_count=0)
    whole = resolve_grid_views(ViewsConfig(), size_px=4, local_count=0)
    few = make_views(batch, config, plain_spec(), seed=0, step=0)[0].pixels
    all_ = make_views(batch, whole, plain_spec(), seed=0, step=0)[0].pixels
    assert 0.2 < few[:, -1].sum() / all_[:, -1].sum() < 0.8
    assert (few[:, :-1].abs().sum(dim=(2, 3)) == 0).float().mean() > 0.2


def test_settings_of_images_are_refused():
    for name, value in (("aspect", (0.5, 2.0)), ("solarise_prob", 0.2), ("global_scale", (0.6, 1.0)), ("hue", 0.1)):
        with pytest.raises(UsageError, match=name):
            resolve_grid_views(ViewsConfig(**{name: value}), size_px=16, local_count=2)
    with pytest.raises(UsageError, match="tile_dropout"):
        resolve_grid_views(ViewsConfig(tile_dropout=1.0), size_px=16, local_count=2)


def test_evaluation_shows_everything(folder):
    _, batch = batch_of(folder)
    assert torch.equal(plain_view(batch, plain_spec(size_px=2)), batch.pixels)


# --- the same command ----------------------------------------------------------------------------


def test_the_same_command_learns_from_grids(folder, tmp_path):
    settings = {"train.steps": 3, "train.batch": 4, "dino.out_dim": 32, "data.split": "all"}
    run = pretrain(folder, out=tmp_path / "run", backbone="grid_micro_w32", settings=settings)
    spec = run_folder.read_json(run / "model" / "config.json")["input"]
    assert spec["grid"] and spec["size_px"] == 4 and spec["channels"] == 6
    assert load(run / "config.yaml")["views"]["jitter_prob"] == 0
    table = embed(run, folder)
    assert table.features.shape == (len(open_source(folder)), 32) and np.isfinite(table.features).all()


@pytest.mark.parametrize("method", ["masked", "dinov2", "contrast", "lejepa"])
def test_other_methods_learn_from_grids_too(folder, tmp_path, method):
    """What a method usually asks of images (crops of any scale) is not asked of grids."""
    settings = {"train.steps": 2, "train.batch": 4, "data.split": "all"}
    run = pretrain(folder, out=tmp_path / method, method=method, backbone="grid_nano_w32", settings=settings)
    losses = [line["loss"] for line in run_folder.read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    settings |= {"views.global_scale": (0.3, 0.9)}
    with pytest.raises(UsageError, match=r"views\.global_scale has no effect on grids"):
        pretrain(folder, out=tmp_path / "b", method=method, backbone="grid_nano_w32", settings=settings)


def test_networks_and_data_of_different_kinds_are_refused(folder, tmp_path):
    settings = {"train.steps": 1}
    with pytest.raises(UsageError, match="reads images"):
        pretrain(folder, out=tmp_path / "a", backbone="vit_micro_patch1", settings=settings | {"data.split": "all"})
    with pytest.raises(UsageError, match="reads grids"):
        pretrain("synthetic:tissue?n=32&size=32", out=tmp_path / "b", backbone="grid_micro", settings=settings)


def test_a_damaged_file_of_features_is_counted(tmp_path):
    folder = trident(tmp_path / "features", slides=3)
    (folder / "slide-1.h5").write_bytes((folder / "slide-1.h5").read_bytes()[:900])
    source = open_source(folder)
    assert {record.group for record in source.records} == {"slide-0", "slide-2"}
    with pytest.raises(TooManyDamaged, match=r"1 of 3 files cannot be used[\s\S]*slide-1\.h5"):
        show(folder)
    assert "UNREADABLE  slide-1.h5" in show(folder, max_bad=0.5).text()
    with pytest.raises(TooManyDamaged, match=r"slide-1\.h5"):
        pretrain(folder, out=tmp_path / "run", settings={"train.steps": 1})
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of 3 files of features can be read"):
        open_source(folder)


@pytest.mark.timeout(60)
def test_a_damaged_text_in_hdf5_does_not_hang(tmp_path):
    """HDF5 reads a heap object by object, and one without a length is never passed."""
    path = tmp_path / "a.h5"
    save_h5(path, SlideFeatures(np.zeros((4, 2), np.int64), np.zeros((4, 3), np.float32), {"slide": "a"}))
    assert load_features(path).about["slide"] == read_about(path)["slide"] == "a"
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    data[heap + 16 : heap + 40] = bytes(24)
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.h5: the texts of its attributes are damaged"):
        load_features(path)
    assert read_about(path) == {}
