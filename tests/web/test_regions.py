"""A hierarchy in a real browser: from the slide to a region, to its tiles, to their patches, and up again."""

from __future__ import annotations

import io
import json
import re
import shlex
import time

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from typer.testing import CliRunner

from made_slides import with_holes, write_slide
from saccade import api
from saccade.cli import app
from saccade.errors import UsageError
from saccade.evaluation.nested_cv import NestedConfig
from saccade.hierarchy.evaluate_slides import HeadOptions
from saccade.hierarchy.heads import HeadConfig
from saccade.web.catalog import build_catalog
from saccade.web.discover import distinct_names, runs_below, without_places
from saccade.web.shell_commands import embed_command, evaluate_command
from saccade.web.start import catalog_of_names
from web_requests import raw_request
from web_waiting import until

SETTINGS = {
    "hipt.tile": "random:vit_micro_patch8_w32",
    "hipt.region_px": 256,
    "data.tile_px": 64,
    "data.mpp": 1.0,
    "region.model.backbone": "grid_nano_w32",
    "region.train.steps": 2,
    "region.train.batch": 4,
    "region.dino.out_dim": 32,
}
SIDE = 4


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "slides"
    api.show(f"synthetic:slide?n=8&size=1536&folder={folder}")
    return folder


@pytest.fixture(scope="module")
def hierarchy(site, drawn, tmp_path_factory):
    """A hierarchy of a few steps on the catalog, with its levels and the slides it learned from."""
    run = api.pretrain(drawn, out=tmp_path_factory.mktemp("layers") / "hipt", backbone="hipt", settings=SETTINGS)
    laid = build_catalog([run], site.catalog.models)
    was = site.catalog.runs, site.catalog.models, site.catalog.hierarchies
    site.catalog.runs = [*site.catalog.runs, *laid.runs]
    site.catalog.models, site.catalog.hierarchies = laid.models, laid.hierarchies
    yield laid.hierarchies[0]
    site.catalog.runs, site.catalog.models, site.catalog.hierarchies = was


@pytest.fixture
def page(window, site, hierarchy):
    window.goto(f"{site.origin}/#/slides")
    window.reload()
    window.wait_for_selector(".stage[data-level=slide]")
    window.wait_for_selector(".stage[data-drawn]")
    return window


def slide_key(site, hierarchy, number=0):
    return site.catalog.id_of("slide", f"{hierarchy.id}/{number}")


def regions_of(site, hierarchy):
    return site.catalog.region_views.regions(f"{hierarchy.id}/{slide_key(site, hierarchy)}")


def at(page, site, hierarchy, y, x):
    """Where a place of level 0 is on the screen while the whole slide is shown."""
    box = page.locator(".stage").bounding_box()
    height, width = site.catalog.slides(hierarchy).slides[0].size_px
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    return box["x"] + left + x * scale, box["y"] + top + y * scale


def crumbs(page):
    return page.locator(".crumbs li").all_inner_texts()


def test_down_to_the_patches_by_clicks_and_up_by_escape(page, site, hierarchy):
    found = regions_of(site, hierarchy)
    assert "uniform weights" in page.locator(".levels").inner_text()
    step = site.catalog.slides(hierarchy).grid(0).step_px
    block = found.blocks[0]
    page.mouse.click(*at(page, site, hierarchy, (block.top + 2) * step[0], (block.left + 2) * step[1]))
    page.wait_for_selector(".stage[data-level=region]")
    row, column = block.top // SIDE, block.left // SIDE
    assert crumbs(page)[1] == f"Region row {row}, column {column}"
    # The small picture of the region: its first tile is clicked.
    y, x = found.cells[block.rows[0]] - (block.top, block.left)
    box = page.locator(".levels .map").first.bounding_box()
    page.mouse.click(box["x"] + (x + 0.5) * box["width"] / SIDE, box["y"] + (y + 0.5) * box["height"] / SIDE)
    page.wait_for_selector(".stage[data-level=tile]")
    page.wait_for_selector("[aria-label='Inside the tile'][data-drawn=yes]")
    # A tile has one name: in the path and in the sentence below the region, counted over the slide.
    y, x = found.cells[block.rows[0]]
    assert crumbs(page)[2] == f"Tile row {y}, column {x}"
    rows, columns = (f"{first} to {first + SIDE - 1}" for first in (block.top, block.left))
    assert f"here are rows {rows}, columns {columns}" in page.locator("[aria-label='Inside the region']").inner_text()
    words = page.locator("[aria-label='Inside the region'] .words").inner_text()
    y, x = (int(one) for one in re.search(r"Most: tile row (\d+), column (\d+)", words).groups())
    assert block.top <= y < block.top + SIDE and block.left <= x < block.left + SIDE
    assert len(crumbs(page)) == 3 and "the marked tile" in page.locator(".words").first.inner_text()
    assert "patch" in page.locator("[aria-label='Inside the tile']").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_selector(".stage[data-level=region]")
    row, column = found.cells[block.rows[0]]
    until(page, f"document.querySelector('.reading').innerText.startsWith('tile row {row}, column {column}')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".stage[data-level=slide]")
    assert len(crumbs(page)) == 1
    page.locator(".stage").focus()
    page.keyboard.press("Tab")
    assert "openseadragon" not in page.evaluate("document.activeElement.className")


def test_down_and_up_by_keys_alone(page, site, hierarchy):
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    assert "times an even share" in page.locator(".reading").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage[data-level=region]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage[data-level=tile]")
    page.keyboard.press("[")
    until(page, "document.querySelector('.words').innerText.includes('layer 0')")
    page.keyboard.press(".")
    until(page, "document.querySelector('.words').innerText.includes('head 0')")
    page.keyboard.press("m")
    until(page, "document.querySelector('.words').innerText.includes('mean of all heads')")
    page.locator(".crumbs button").first.click()
    page.wait_for_selector(".stage[data-level=slide]")


def test_a_head_and_the_class_token_are_chosen(page, site, hierarchy):
    page.locator(".stage").focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".stage[data-level=region]")
    page.locator(".heads button").nth(1).click()
    until(page, "document.querySelector('.words').innerText.includes('head 1')")
    assert page.get_by_label("Head", exact=True).input_value() == "1"
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage[data-level=tile]")
    page.get_by_label("Query").select_option("class")
    until(page, "document.querySelector('.words').innerText.includes('the class token')")


def test_the_numbers_are_those_of_attend(page, site, hierarchy, drawn):
    found, key = regions_of(site, hierarchy), slide_key(site, hierarchy)
    name = site.catalog.slides(hierarchy).entries[0].record.id
    wanted = api.attend_hierarchy(hierarchy.folder, drawn / name)
    tile, composed = (one.heat.scores for one in wanted)  # nobody weighs the regions: there is no map of them
    weights = np.frombuffer(raw_request(site, f"/api/regions/{key}/weights")[2], "<f4")
    assert len(weights) == len(found.blocks) and weights == pytest.approx(1, abs=1e-5)
    for query, scores in (("", tile), ("?composed=true", composed)):
        tiles = np.frombuffer(raw_request(site, f"/api/regions/{key}/tiles{query}")[2], "<f4")
        assert tiles[found.weights.rows] == pytest.approx(scores, abs=1e-4)
    # The class token's row of the last layer, mean over heads, is that same map; places without a tile get nothing.
    look = json.loads(raw_request(site, f"/api/regions/{key}/0/view")[2])
    path = f"/api/regions/{key}/0/rows?layer={look['depth'] - 1}&first=0"
    row = np.frombuffer(raw_request(site, path)[2], "<f4").reshape(look["heads"], -1).mean(axis=0)[look["prefix"] :]
    there = np.array(look["has_tile"])
    assert (row[~there] == 0).all() and there.sum() == len(found.blocks[0].rows)
    own = row[there] / row[there].sum() * there.sum()
    order = np.argsort([y * SIDE + x for y, x in found.cells[found.blocks[0].rows] % SIDE])
    assert own == pytest.approx(tile[: there.sum()][order], abs=1e-3)


def test_nothing_is_written(page, site, hierarchy):
    before = {path: path.stat().st_mtime_ns for path in hierarchy.folder.rglob("*")}
    for file in (hierarchy.folder / "features" / "region").glob("*.parquet"):
        file.rename(file.with_suffix(".away"))
    laid = build_catalog([hierarchy.folder])
    from saccade.hierarchy.explorer import RegionViews, SlideRequest

    looks, tiles = RegionViews(), laid.slides(laid.hierarchies[0])
    asked = SlideRequest("k", hierarchy.folder, None, tiles, 0)
    looks.start(asked)
    ends = time.monotonic() + 60
    while not looks.state("k").ready and time.monotonic() < ends:
        time.sleep(0.05)
    assert looks.regions("k").weights.region == pytest.approx(regions_of(site, hierarchy).weights.region, abs=1e-5)
    for file in (hierarchy.folder / "features" / "region").glob("*.away"):
        file.rename(file.with_suffix(".parquet"))
    assert set(hierarchy.folder.rglob("*")) == set(before)


def test_ids_lead_nowhere_else(site, hierarchy, page):
    key = slide_key(site, hierarchy)
    assert raw_request(site, "/api/regions/nothing")[0] == 404 and raw_request(site, "/api/regions/../hipt")[0] == 404
    count = len(regions_of(site, hierarchy).blocks)
    assert raw_request(site, f"/api/regions/{key}/{count}/view")[0] == 404
    assert raw_request(site, f"/api/regions/{key}/-1/picture")[0] == 404
    assert raw_request(site, f"/api/regions/{key}/0/rows?layer=99&first=0")[0] == 400
    assert str(hierarchy.folder).encode() not in raw_request(site, "/api/slides")[2]
    other = slide_key(site, hierarchy, 1)
    status, _, body = raw_request(site, f"/api/regions/{other}")
    assert status == 400 and b"have not been computed" in body


def test_the_levels_of_a_hierarchy_are_runs_of_their_own(site, hierarchy):
    names = [run.name for run in site.catalog.runs]
    assert "hipt/region" in names and "hipt/tile" not in names  # the tile level was named and not trained
    models = {one.name: one.axes for one in site.catalog.choices()}
    assert models["random:vit_micro_patch8_w32"] == 2 and models["hipt/region"] == 0
    found = runs_below(hierarchy.folder.parent)
    assert found == [hierarchy.folder]
    assert catalog_of_names([str(hierarchy.folder)]).hierarchies[0].name == "hipt"


@pytest.fixture(scope="module")
def heads(hierarchy, drawn, tmp_path_factory):
    """Heads trained on six of the eight slides, which a table in another folder names."""
    folder = tmp_path_factory.mktemp("heads")
    nested = NestedConfig(folds=2, inner=2, fractions=(1.0,), bootstrap=20)
    options = HeadOptions(
        heads=("abmil",), head=HeadConfig(steps=2), nested=nested, allow_overlap=True, baselines=False
    )
    table = folder / "six.csv"
    rows = (drawn / "manifest.csv").read_text().splitlines()
    table.write_text("\n".join([rows[0], *(f"{drawn}/{row}" for row in rows[1:7])]))
    return api.finetune_slides(hierarchy.folder, table, out=folder / "heads", options=options) and folder / "heads"


def shows(page) -> str:
    return page.get_by_label("Shows", exact=True).input_value()


def test_the_command_for_regions_works_from_any_folder(hierarchy, tmp_path, monkeypatch):
    """As it is printed, also for a run that says where its grids lie as seen from another folder."""
    run = hierarchy.folder / "region"
    config = run / "config.yaml"
    was = config.read_text()
    source = yaml.safe_load(was)["data"]["source"]
    config.write_text(was.replace(source, "runs/hipt/grids/region"))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(embed_command(run, tmp_path / "features.parquet"))
    config.write_text(was)
    assert words[:4] == ["saccade", "embed", str(run), str(hierarchy.folder / "grids" / "region")]
    found = CliRunner().invoke(app.app, words[1:])
    assert found.exit_code == 0 and (tmp_path / "features.parquet").is_file(), found.output
    assert evaluate_command(run) == f"saccade evaluate {run} DATA"  # it has learned from all of them


def test_a_slide_starts_under_weights_where_there_are_any(window, site, hierarchy, heads):
    """The run stands beside the slide in the closed list and in the path above it; no name climbs."""
    laid, was = build_catalog([heads], site.catalog.models), site.catalog.hierarchies
    site.catalog.hierarchies = [*was, *laid.hierarchies]
    try:
        window.goto("about:blank")
        window.goto(f"{site.origin}/#/slides")
        window.wait_for_selector(".stage[data-level=slide]", timeout=60_000)
        listed = window.get_by_label("Slide", exact=True)
        names = listed.locator("option").all_inner_texts()
        assert names[0] == "slide-0000.tif · hipt" and names[8] == "slide-0000.tif · heads"
        assert crumbs(window) == ["slide-0000.tif · hipt"] and not [name for name in names if "/" in name]
        assert shows(window) == "tiles"
        assert window.get_by_label("Shows", exact=True).locator("option[value=regions]").count() == 0
        listed.select_option(label="slide-0001.tif · heads")
        until(window, "document.querySelector('.words').innerText.includes('weighed by the trained head')", 60)
        assert crumbs(window) == ["slide-0001.tif · heads"] and shows(window) == "regions"
        window.get_by_label("Shows", exact=True).select_option("composed")
        listed.select_option(label="slide-0002.tif · heads")
        until(window, "document.querySelector('.words').innerText.includes('The weight of the region times')", 60)
        assert shows(window) == "composed"  # as was chosen by hand
    finally:
        site.catalog.hierarchies = was


def test_a_trained_head_weighs_the_regions(hierarchy, heads, tmp_path):
    catalog = catalog_of_names([str(heads)])
    one = catalog.hierarchies[0]
    assert len(catalog.all_slides()[0]) == 6 and catalog.all_slides()[1] == []  # those it was trained on, of eight
    assert one.name == "heads" and one.folder == hierarchy.folder and one.head == heads.resolve()
    from saccade.hierarchy.explorer import SlideRequest, look
    from saccade.hierarchy.train_levels import load

    found = look(load(one.folder), SlideRequest("k", one.folder, one.head, catalog.slides(one), 0), lambda _: None)
    assert found.weights.who == "the trained head" and found.weights.region.mean() == pytest.approx(1, abs=1e-4)
    record = json.loads((heads / "head" / "head.json").read_text())
    broken = tmp_path / "heads"
    (broken / "head").mkdir(parents=True)
    (broken / "head" / "head.json").write_text(json.dumps(record | {"hierarchy": str(tmp_path / "gone")}))
    with pytest.raises(UsageError, match="is gone"):
        catalog_of_names([str(broken)])
    assert "is gone" in build_catalog([broken]).all_slides()[1][0].reason


def test_names_are_as_long_as_tells_them_apart():
    assert distinct_names(["../../data/a/CMU-1.svs", "../../data/a/CMU-2.svs"]) == ["CMU-1.svs", "CMU-2.svs"]
    assert distinct_names(["../a/1/x.svs", "/b/1/x.svs", "../a/2/x.svs", "y.svs"]) == [
        "a/1/x.svs",
        "b/1/x.svs",
        "2/x.svs",
        "y.svs",
    ]
    assert distinct_names(["../x.svs", "../../x.svs"]) == ["x.svs", "x.svs"] and distinct_names([]) == []
    assert without_places("../../data/a/CMU-1.svs: cannot be read") == "CMU-1.svs: cannot be read"
    assert without_places("/data/a/CMU-1.svs: 3/4 read") == "CMU-1.svs: 3/4 read"


@pytest.fixture
def spotted(site, drawn):
    """The second slide with one stored tile of 128 pixels damaged: 2 x 2 tiles of the region in row 2, column 2."""
    path = sorted(drawn.glob("*.tif"))[1]
    kept, sources = path.read_bytes(), dict(site.catalog._sources)
    with tifffile.TiffFile(path) as file:
        pixels = file.pages[0].asarray()
    write_slide(path, pixels, um=1.0, level_px=((768, 768), (384, 384)))
    with_holes(path, path, (4 * 12 + 4,))
    site.catalog._sources.clear()
    yield path
    path.write_bytes(kept)
    site.catalog._sources.clear()
    site.catalog._sources.update(sources)


def test_a_damaged_spot_of_a_slide_is_striped_and_named(window, site, hierarchy, spotted):
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/slides")
    listed = window.get_by_label("Slide", exact=True)
    listed.wait_for()
    listed.select_option(label=f"{spotted.name} · hipt")
    until(
        window, f"document.querySelector('.words').innerText.includes('4 tiles cannot be read in {spotted.name}')", 60
    )
    window.wait_for_selector(".stage[data-drawn]")
    page, found = window, site.catalog.region_views.regions(f"{hierarchy.id}/{slide_key(site, hierarchy, 1)}")
    assert found.count == len(found.cells) + 4 and len(found.about()["region_of"]) == found.count
    number = found.about()["regions"].index([2, 2])
    step = site.catalog.slides(hierarchy).grid(1).step_px
    page.mouse.click(*at(page, site, hierarchy, 11 * step[0], 11 * step[1]))
    page.wait_for_selector(".stage[data-level=region]")
    until(
        page, f"document.querySelector('.levels').innerText.includes('cannot be read in {spotted.name}: it is striped')"
    )
    assert "25.0 % of this region" in page.locator(".levels p.note").inner_text()
    key = slide_key(site, hierarchy, 1)
    picture = np.asarray(
        Image.open(io.BytesIO(raw_request(site, f"/api/regions/{key}/{number}/picture")[2])).convert("RGB")
    )
    stripes = np.isin(picture[:128, :128], (96, 160)).all(axis=-1)
    assert (
        picture.shape[:2] == (256, 256) and stripes.all() and not np.isin(picture[128:], (96, 160)).all(axis=-1).any()
    )
    there = json.loads(raw_request(site, f"/api/regions/{key}/{number}/view")[2])["has_tile"]
    assert sum(there) == 12 and not any(there[i] for i in (0, 1, 4, 5))
    assert np.isnan(np.frombuffer(raw_request(site, f"/api/regions/{key}/tiles")[2], "<f4")).sum() >= 4


def test_slides_that_cannot_be_shown_are_named(window, site, hierarchy, drawn, tmp_path):
    """One file is damaged and one is gone; then the whole folder is."""
    names = [one["id"] for one in json.loads((hierarchy.folder / "data.json").read_text())["files"]]
    damaged, gone = (drawn / name for name in names[:2])
    kept, sources = damaged.read_bytes(), dict(site.catalog._sources)
    away = [gone.name, "manifest.csv"]
    try:
        for name in away:
            (drawn / name).rename(tmp_path / name)
        damaged.write_bytes(b"no slide")
        site.catalog._sources.clear()
        window.goto("about:blank")
        window.goto(f"{site.origin}/#/slides")
        window.wait_for_selector(".missing li")
        words = window.locator(".missing").inner_text()
        assert "2 slides cannot be shown" in words and f"{damaged.name} (hipt): cannot be" in words
        assert f"{gone.name} (hipt): the file is no longer there" in words and str(drawn.parent) not in words
        window.goto("about:blank")  # what the page still asks for would be gone as well
        site.catalog._sources.clear()
        drawn.rename(tmp_path / "elsewhere")
        window.goto(f"{site.origin}/#/slides")
        until(window, f"document.querySelector('.missing')?.innerText.includes('{len(names)} slides cannot be shown')")
        window.locator(".missing summary").click()
        assert gone.name in window.locator(".missing").inner_text()
    finally:
        if not drawn.exists():
            (tmp_path / "elsewhere").rename(drawn)
        for name in away:
            (tmp_path / name).rename(drawn / name)
        damaged.write_bytes(kept)
        site.catalog._sources.clear()
        site.catalog._sources.update(sources)
