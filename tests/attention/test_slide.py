"""Heatmaps of slides and what other programs read of them."""

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from made_slides import on_glass, texture, with_holes, write_slide
from saccade import api
from saccade.attention.slide import SlideAttention, SlideOptions
from saccade.base.contracts import InputSpec
from saccade.cli.app import app
from saccade.data.slides.slide import open_slide
from saccade.data.slides.tiling import Tiling
from saccade.errors import ModelError, TooManyDamaged, UsageError
from saccade.features.embed_slides import Embedder
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model
from saccade.viz.heatmap import TileScores, extremes, picture, save_tiff
from saccade.viz.qupath import features, save_geojson

CUT = Tiling(mpp=1.0, tile_px=32)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("heat") / "slide.tif"
    return open_slide(write_slide(path, on_glass(texture(500, 700), 60), level_px=((250, 350),)))


@pytest.fixture
def heat():
    cells = np.array([(0, 0), (1, 0), (2, 1), (4, 3)])
    coords = np.rint(cells * 76.8).astype(np.int64) + 64
    return TileScores("attention", coords, 76.8, np.array([0.0, 1.0, 2.0, 3.0]))


def test_scores_lie_where_their_squares_are(heat):
    values = heat.sampled(0, (250, 350), 2.0)
    for (x, y), score in zip(heat.coords, heat.scores):
        at_y, at_x = round((y + 38) / 2), round((x + 38) / 2)
        assert values[at_y, at_x] == score
        inside = values[round(y / 2) + 1 : round((y + 76.8) / 2) - 1, round(x / 2) + 1 : round((x + 76.8) / 2) - 1]
        assert (inside == score).all()
    assert np.isnan(values[:31]).all() and np.isnan(values).sum() > 0.8 * values.size
    assert np.array_equal(heat.sampled(100, (50, 350), 2.0), values[100:150], equal_nan=True)


def test_pictures_change_where_scores_are_and_nowhere_else(slide, heat, tmp_path):
    page = np.asarray(picture(slide, heat, longest_px=700)).astype(int)
    plain = slide.thumbnail(700).transpose(1, 2, 0).astype(int)
    changed = np.abs(page[:500, :700] - plain).max(axis=2) > 12
    there = ~np.isnan(heat.sampled(0, (500, 700), 1.0))
    assert changed[there].mean() > 0.9 and changed[~there].mean() < 0.01
    written = open_slide(save_tiff(tmp_path / "heat.tif", slide, heat))
    assert written.size_px == slide.size_px and written.spacing_um == pytest.approx((0.5, 0.5), rel=1e-3)
    found = written.read(0, 0, mpp=0.5, size_px=(500, 700)).transpose(1, 2, 0).astype(int)
    assert np.abs(found - page[:500, :700]).mean() < 8
    assert extremes(slide, heat, count=3, tile_px=32).size[0] > 100


def test_ranges_are_those_of_all_scores_and_the_bar_says_where_colours_end(slide, heat, tmp_path):
    scores = np.concatenate([np.linspace(0.4, 0.9, 998), [-0.07, 0.999]])
    coords = np.stack([np.arange(1000) * 4, np.zeros(1000, int)], axis=1)
    found = SlideAttention(slide, TileScores("a", coords, 4.0, scores), "m", SlideOptions())
    assert found.text().endswith("1,000 squares, -0.07 to 0.999") and found.heat.marks == (
        "0.405 and below",
        "0.895 and above",
    )
    assert TileScores("a", coords[:4], 4.0, np.zeros(4)).marks == ("0", "0")
    assert dataclasses.replace(heat, scores=np.array([0.0, 0.0, 1.0, 1.0])).marks == ("0", "1")


def test_squares_are_as_high_as_they_are_where_pixels_are_not_square(tmp_path):
    cells = np.array([(0, 0), (3, 0), (5, 1), (19, 3)])  # (row, column); in the last row a wrong height adds up
    coords = np.rint(cells[:, ::-1] * np.array([64.0, 32 / 0.6])).astype(np.int64)
    heat = TileScores("a", coords, 64.0, np.arange(4.0), 32 / 0.6)
    values = heat.sampled(0, (1100, 300), 1.0)
    for (x, y), score in zip(coords, heat.scores):
        assert (values[y + 1 : y + 52, x + 1 : x + 63] == score).all()
    assert np.isfinite(values).sum() == pytest.approx(4 * 64 * 32 / 0.6, rel=0.02)
    for feature, (x, y) in zip(features(heat), coords.tolist()):
        assert feature["geometry"]["coordinates"][0][2] == [x + 64, round(y + 32 / 0.6, 2)]
    lines = heat.save_csv(tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "x,y,side,side_y,score" and lines[1].startswith("0,0,64.000,53.333,")
    tags = {"resolution": (1e4 / 0.5, 1e4 / 0.6), "resolutionunit": "CENTIMETER"}
    path = tmp_path / "oblong.tif"
    tifffile.imwrite(path, on_glass(texture(900, 700), 40), tile=(128, 128), photometric="rgb", **tags)
    for options in (SlideOptions(tiling=CUT), SlideOptions(level="patch", tiling=CUT)):
        found = api.attend_slide("random:vit_micro_patch8", path, options=options).heat
        assert found.sides_px[0] * 0.6 == pytest.approx(found.sides_px[1] * 0.5)
        cells = found.coords[:, ::-1] / found.sides_px
        assert np.abs(cells - np.rint(cells)).max() < 0.05
    written = open_slide(save_tiff(tmp_path / "heat.tif", open_slide(path), found))
    assert written.spacing_um == pytest.approx((0.6, 0.5), rel=1e-3)


def test_geojson_is_what_qupath_documents(heat, tmp_path):
    """FeatureCollection in pixels of the full resolution; objectType, classification, measurements."""
    others = {"region": np.array([1.0, np.nan, 3.0, 4.0])}
    text = save_geojson(tmp_path / "a.geojson", heat, object_type="annotation", others=others).read_text()
    found = json.loads(text)
    assert set(found) == {"type", "features"} and found["type"] == "FeatureCollection" and len(found["features"]) == 4
    for feature, (x, y) in zip(found["features"], heat.coords.tolist()):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == [x, y] and ring[2] == [x + 76.8, y + 76.8] and len(ring) == 5
        properties = feature["properties"]
        assert properties["objectType"] == "annotation" and len(properties["classification"]["color"]) == 3
        assert all(isinstance(c, int) and 0 <= c <= 255 for c in properties["classification"]["color"])
        assert all(isinstance(value, float) for value in properties["measurements"].values())
    first, second = (feature["properties"]["measurements"] for feature in found["features"][:2])
    assert first == {"attention": 0.0, "region": 1.0} and second == {"attention": 1.0}  # no NaN in JSON
    assert len({feature["id"] for feature in found["features"]}) == 4
    assert features(heat)[0]["properties"]["objectType"] == "tile"
    with pytest.raises(UsageError, match="another length"):
        features(heat, others={"x": np.zeros(2)})
    with pytest.raises(UsageError, match="number of scores"):
        TileScores("a", heat.coords, 1.0, np.zeros(2))


def test_a_tile_is_most_like_itself(slide, tmp_path, monkeypatch):
    options = SlideOptions(query="200,300", tiling=CUT)
    found = api.attend_slide("random:vit_micro_patch8", slide.path, options=options)
    best = found.heat.coords[found.heat.scores.argmax()]
    assert best.tolist() == [256, 192] and found.heat.scores.max() == pytest.approx(1)
    files = found.save(tmp_path / "out")
    assert sorted(file.name for file in files) == [
        "extremes.png",
        "heatmap.png",
        "heatmap.tif",
        "scores.csv",
        "tiles.geojson",
    ]
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 1 + len(found.heat.scores)
    monkeypatch.setattr(Embedder, "features", lambda *_: pytest.fail("tiles were embedded"))
    outside = r"outside \S+slide\.tif[\s\S]*Y from 0 to 499 and X from 0 to 699"
    for query, words in (
        ("1,1", "no tile"),
        ("here", "Y,X"),
        ("99999,1", outside),
        ("-1,5", outside),
        ("nan,1", "Y,X"),
    ):
        with pytest.raises(UsageError, match=words):
            api.attend_slide("random:resnet10_w8", slide.path, options=SlideOptions(query=query, tiling=CUT))


def test_what_cannot_be_read_of_a_slide_costs_no_file(tmp_path):
    """A whole strip of the TIFF, and squares among the extremes: they are background."""
    whole = write_slide(tmp_path / "whole.tif", texture(1024, 512))
    holed = open_slide(with_holes(whole, tmp_path / "holed.tif", tuple(range(4 * 6, 4 * 8))))
    coords = np.array([(x, y) for y in range(0, 1024, 128) for x in range(0, 512, 128)])
    heat = TileScores("a", coords[:-4], 128.0, np.arange(len(coords) - 4, dtype=float))
    files = SlideAttention(holed, heat, "m", SlideOptions()).save(tmp_path / "out")
    names = [file.name for file in files]
    assert names == ["scores.csv", "tiles.geojson", "heatmap.png", "extremes.png", "heatmap.tif"]
    assert sorted(names) == sorted(file.name for file in (tmp_path / "out").iterdir())
    found = open_slide(files[-1]).read(0, 0, mpp=0.5, size_px=(1024, 512))
    assert found[:, 910:].min() > 250 and found[:, :700].mean() < 200
    beyond, unread = holed.around_damage(0, 900, (1.0, 1.0), (64, 64))
    assert unread.all() and (beyond == 255).all()


def test_a_tiff_that_is_not_finished_leaves_nothing(slide, heat, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(slide), "around_damage", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_tiff(tmp_path / "heat.tif", slide, heat)
    assert not list(tmp_path.iterdir())


def test_attention_inside_tiles(slide):
    options = SlideOptions(level="patch", tiling=CUT)
    found = api.attend_slide("random:vit_micro_patch8", slide.path, options=options)
    assert found.heat.side_px == pytest.approx(16) and len(found.heat.scores) % 16 == 0
    per_tile = found.heat.scores.reshape(-1, 16)
    assert per_tile.mean(axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="has no attention"):
        api.attend_slide("random:resnet10_w8", slide.path, options=options)


def test_the_command(slide, tmp_path):
    call = ["attend", "random:resnet10_w8", str(slide.path), "--mpp", "1", "--tile", "64"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "a.png"), "--json"])
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "a.png").size[0] >= 700
    for wrong in (["--head", "1"], ["--level", "slice"], ["--layer", "0"], ["--out", "a.svg"]):
        with pytest.raises(UsageError):
            CliRunner().invoke(app, [*call, *wrong], catch_exceptions=False)


def test_what_cannot_be_is_refused_before_the_slide_is_opened(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "open_source", lambda *_, **__: pytest.fail("the slide was opened"))
    table = tmp_path / "slides.csv"
    table.write_text(f"path,mpp\n{slide.path},0.5\n")
    model, path = "random:resnet10_w8", str(slide.path)
    for call, words in (
        ([path, "--out", "a.svg"], r"slide map: a\.svg[\s\S]*\.png, \.tif, \.geojson, \.csv, or a name"),
        ([path, "--query", "abc"], "Y,X in pixels"),
        ([str(table)], r"one slide or image, and \S+slides\.csv is a table[\s\S]*--slide-mpp"),
        ([str(slide.path.parent)], "is a folder of slides"),
    ):
        with pytest.raises(UsageError, match=words):
            CliRunner().invoke(app, ["attend", model, *call], catch_exceptions=False)


def test_models_of_other_things_say_what_they_read(slide, tmp_path):
    """A volume's network, and the region level of a hierarchy, used to fail deep inside."""
    cube = InputSpec(1, 16, 0.0, 1.0, (0.0,), (1.0,), axes=3, intensity="robust")
    network = build("vit_micro_patch4_w64", channels=1, size_px=16, axes=3, seed=0)
    save_model(tmp_path / "cubes" / "model", network, cube, about={})
    grid = InputSpec(6, 4, 0.0, 1.0, (0.0,) * 6, (1.0,) * 6, grid=True)
    whole = tmp_path / "whole"
    save_model(whole / "region" / "model", build("grid_nano_w32", channels=6, size_px=4), grid, about={})
    (whole / "hierarchy.yaml").touch()
    (whole / "tile").mkdir()
    for model, words in (
        ("cubes", "reads volumes"),
        ("whole/region", rf"reads grids of vectors[\s\S]*{whole / 'tile'}"),
    ):
        with pytest.raises(ModelError, match=words):
            api.attend_slide(tmp_path / model, slide.path, options=SlideOptions(tiling=CUT))
        with pytest.raises(ModelError, match=words):
            api.embed(tmp_path / model, slide.path, out=tmp_path / "x.h5", tiling=CUT)
    assert not (tmp_path / "x.h5").exists()


def test_damaged_tiles_have_no_colour(tmp_path):
    whole = write_slide(tmp_path / "whole.tif", texture(768, 768))
    holed = with_holes(whole, tmp_path / "holed.tif", (0, 14))
    cut = Tiling(mpp=0.5, tile_px=64, min_tissue=0.0)
    for level, each in (("tile", 1), ("patch", 64)):
        options = SlideOptions(level=level, tiling=cut, max_bad=0.1)
        found = api.attend_slide("random:vit_micro_patch8", holed, options=options)
        assert len(found.heat.scores) == 136 * each
        page = np.asarray(picture(found.slide, found.heat, longest_px=768)).astype(int)
        for x, y in ((4, 4), (124, 124), (260, 260), (380, 380)):
            assert page[y, x].tolist() == [255, 255, 255]
        assert page[200, 200].tolist() != [255, 255, 255]
        assert len(found.save(tmp_path / level)) >= 3
    with pytest.raises(UsageError, match="the tile at 10,10 cannot be read"):
        api.attend_slide("random:resnet10_w8", holed, options=SlideOptions("10,10", tiling=cut, max_bad=0.1))
    with pytest.raises(TooManyDamaged, match="--max-bad"):
        api.attend_slide("random:resnet10_w8", holed, options=SlideOptions(tiling=cut))
