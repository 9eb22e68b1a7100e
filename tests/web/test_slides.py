"""Slides in a real browser: deep zoom, the tiles that are like the one clicked, and the patches of that tile."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from made_slides import texture, with_holes, write_slide
from saccade import api
from saccade.attention.explorer import Explorer, ViewRequest
from saccade.attention.explorer_slides import SlideSimilarity
from saccade.attention.slide import SlideOptions
from saccade.base.contracts import InputSpec
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model
from saccade.web.catalog import CatalogRun
from saccade.web.discover import written
from web_requests import raw_request
from web_waiting import Held, until, waited_for

SIDE, TILE = 512, 64


@pytest.fixture(scope="module")
def slides(site, tmp_path_factory):
    """A run whose data is one small slide: left half of one colour, right half of another, white above."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    pixels = np.full((SIDE, SIDE, 3), 245, np.uint8)
    pixels[128:, :256] = (150, 60, 140)
    pixels[128:, 256:] = (220, 120, 180)
    pixels[128:] = np.clip(pixels[128:] + rng.normal(0, 20, (SIDE - 128, SIDE, 3)), 0, 255)
    (folder / "data").mkdir()
    with tifffile.TiffWriter(folder / "data" / "slide.tif") as file:
        usual = {"tile": (256, 256), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
        file.write(pixels, subifds=0, resolution=(20_000, 20_000), **usual)
        file.write(pixels[::2, ::2], subfiletype=1, resolution=(10_000, 10_000), **usual)
    network = build("vit_micro_patch8_w32", size_px=TILE)
    spec = InputSpec(3, TILE, 0.0, 255.0, (0.5,) * 3, (0.25,) * 3)
    save_model(folder / "model", network, spec, about={})
    data = {"source": str(folder / "data"), "mpp": 0.5, "tile_px": TILE, "tissue": 0.5, "slide_mpp": 0.0}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "stained", folder)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


def test_a_slide_may_have_more_tiles_than_a_call_has_arguments(window):
    script = """async () => {
      const { heatmapOf } = await import("/static/slide_viewer.js");
      const cells = Array.from({ length: 250000 }, (_, i) => [3 + Math.floor(i / 500), 7 + (i % 500)]);
      const { small, box } = heatmapOf(cells, [2, 4], new Float32Array(cells.length).fill(1), { low: 0, high: 1 });
      return [small.width, small.height, ...box];
    }"""
    assert window.evaluate(script) == [500, 500, 28, 6, 2000, 1000]


@pytest.fixture
def page(window, site, slides):
    window.goto(f"{site.origin}/#/slides")
    window.reload()
    until(window, "document.querySelector('.words')?.innerText.includes('mean of all')")
    window.wait_for_selector(".stage[data-drawn]")
    return window


def tiles_of(site, run):
    tiles = site.catalog.slides(run)
    assert tiles is not None and len(tiles.entries) == 1
    return tiles


def test_a_tile_is_clicked_and_its_patches_are_there(page, site, slides):
    tiles = tiles_of(site, slides)
    box = page.locator(".stage").bounding_box()
    shown = min(box["width"], box["height"])  # the slide is square and shown whole
    left, top = box["x"] + (box["width"] - shown) / 2, box["y"] + (box["height"] - shown) / 2
    page.mouse.click(left + shown * 96 / SIDE, top + shown * 352 / SIDE)
    page.wait_for_selector("[data-drawn=yes] .map")
    assert "How like the marked tile" in page.locator(".words").first.inner_text()
    number = int(np.flatnonzero((tiles.grid(0).cells == (5, 1)).all(axis=1))[0])
    look = ViewRequest(str(slides.folder), "tiles", written=written(str(slides.folder)))
    sample = tiles.read(int(tiles.tiles_of(0)[number]))
    qkv = Explorer().view(ViewRequest(str(slides.folder), "tile"), sample).qkv
    row = qkv.rows(qkv.depth - 1, 0)[:, 0, 1:].mean(axis=0)
    words = page.locator(".panel .words").inner_text()
    share = float(re.search(r"with ([\d.]+) %", words).group(1))
    assert share == pytest.approx(100 * row.max(), rel=0.05)
    key = site.catalog.id_of("slide", f"{slides.id}/0")
    scores = site.catalog.slide_similarity.similarity(look, key, number)
    exact = api.attend_slide(slides.folder, tiles.slides[0].path, options=SlideOptions(query="352,96"))
    np.testing.assert_allclose(scores, exact.heat.scores, atol=1e-5)  # the page's scores are the command's
    left_half = tiles.grid(0).cells[:, 1] < 4
    assert scores[number] == pytest.approx(1, abs=1e-5) and scores[left_half].min() > scores[~left_half].max()


def test_the_way_from_a_tile_to_all_layers_leads_to_that_tile(page, site, slides):
    box = page.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"])
    page.wait_for_selector("[data-drawn=yes] .map")
    page.get_by_role("link", name="Every layer and head").click()
    until(page, "document.querySelector('.page-attention .words strong') && !document.querySelector('[aria-busy]')")
    image = re.search(r"image=(\w+)", page.url).group(1)
    chosen = page.locator(".thumbs [aria-selected=true]")
    assert chosen.get_attribute("data-id") == image and chosen.get_attribute("title").startswith("slide.tif#")
    assert page.get_by_label("Images of").input_value() == slides.id


def test_a_slide_that_is_being_opened_is_waited_for_in_words(window, site, slides):
    held = Held(window, "**/api/slides/*")
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/slides")
    window.wait_for_selector(".stage")
    assert waited_for(window) == "Opening slide.tif · stained."
    held.let_go()
    until(window, "document.querySelector('.words')?.innerText.includes('mean of all')")


def test_a_refused_model_leaves_nothing_of_another(page, site, slides, tmp_path):
    network = build("vit_micro_patch8_w32", channels=5, size_px=TILE)
    save_model(tmp_path / "model", network, InputSpec(5, TILE, 0.0, 255.0, (0.5,) * 5, (0.25,) * 5), about={})
    (tmp_path / "config.yaml").write_text("data: {}")
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "five channels", tmp_path)
    site.catalog.runs.append(run)
    page.reload()
    until(page, "document.querySelector('.words')?.innerText.includes('mean of all')")
    heat = """[...document.querySelector('.heat').getContext('2d').getImageData(0, 0, 2000, 2000).data].some(Boolean)"""
    until(page, heat)
    box = page.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"])
    page.wait_for_selector("[data-drawn=yes] .map")
    page.get_by_label("Model", exact=True).select_option(label="five channels")
    page.locator(".words [role=alert]").wait_for()
    assert "channels" in page.locator(".words").inner_text()
    assert not page.evaluate(heat) and not page.locator(".map, .scale .ramp").count()
    site.catalog.runs.remove(run)


def test_a_damaged_spot_is_striped_and_the_rest_is_there(page, site, tmp_path, refusals):
    """Tiles of the spot are named and blank; all others have their likeness, and the picture is there."""
    refusals.append("status of 400")
    (tmp_path / "data").mkdir()
    whole = write_slide(tmp_path / "whole.tif", texture(512, 512), um=0.5, level_px=((256, 256),))
    with_holes(whole, tmp_path / "data" / "holed.tif", (5,))  # rows and columns 128 to 255 of level 0
    data = {"source": str(tmp_path / "data"), "mpp": 0.5, "tile_px": TILE, "tissue": 0.0, "slide_mpp": 0.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "holed", tmp_path)
    site.catalog.runs.append(run)
    page.reload()
    until(page, "document.querySelector('.words')?.innerText.includes('mean of all')")
    page.get_by_label("Slide", exact=True).select_option(label="holed.tif · holed")
    until(page, "document.querySelector('.words').innerText.includes('4 tiles cannot be read in holed.tif')")
    page.wait_for_selector(".stage[data-drawn]")
    key = site.catalog.id_of("slide", f"{run.id}/0")
    square = np.asarray(Image.open(io.BytesIO(raw_request(site, f"/api/slides/{key}/zoom/9/0/0")[2])))
    wanted = tiles_of(site, run).slides[0].reduced(0, 0, 1.0, (128, 256)).transpose(1, 2, 0)
    assert np.abs(square[:128].astype(int) - wanted).mean() < 12
    spot = square[136:248, 136:248].astype(int)
    assert np.ptp(spot, axis=-1).max() <= 8 and spot.min() >= 60 and spot.max() <= 200  # grey stripes
    box = page.locator(".stage").bounding_box()
    shown = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - shown) / 2, box["y"] + (box["height"] - shown) / 2
    page.mouse.click(left + shown * 160 / SIDE, top + shown * 160 / SIDE)
    until(page, "document.querySelector('.words').innerText.includes('tile cannot be read from the slide file')")
    page.mouse.click(left + shown * 30 / SIDE, top + shown * 30 / SIDE)
    page.wait_for_selector("[data-drawn=yes] .map")
    assert "4 tiles cannot be read in holed.tif" in page.locator(".words").first.inner_text()
    site.catalog.runs.remove(run)


def test_white_ground_has_no_tile(page):
    box = page.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    until(page, "document.querySelector('.words').innerText.includes('too little tissue')")


def test_the_pyramid_is_the_slide(site, slides):
    key = site.catalog.id_of("slide", f"{slides.id}/0")
    status, headers, body = raw_request(site, f"/api/slides/{key}/zoom/9/1/1")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    square = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    wanted = tiles_of(site, slides).slides[0].reduced(256, 256, 1.0, (256, 256)).transpose(1, 2, 0)
    assert square.shape == (256, 256, 3)
    blocks = (square - wanted).reshape(16, 16, 16, 16, 3).mean(axis=(1, 3))
    assert np.abs(blocks).max() < 8  # JPEG blurs noise; its means stay
    assert Image.open(io.BytesIO(raw_request(site, f"/api/slides/{key}/zoom/0/0/0")[2])).size == (1, 1)
    for place in ("9/2/0", "10/0/0", "9/0/2"):
        assert raw_request(site, f"/api/slides/{key}/zoom/{place}")[0] == 404
    assert raw_request(site, "/api/slides/nothing")[0] == 404


def test_likeness_needs_features_and_says_so(site, slides):
    from saccade.errors import UsageError

    looks = SlideSimilarity(Explorer())
    with pytest.raises(UsageError, match="have not been computed"):
        looks.similarity(ViewRequest("random:vit_micro_patch8_w32", "tiles"), "x", 0)
