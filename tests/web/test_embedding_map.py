"""The map in a real browser: points, colours, lasso, neighbours, jobs, files; hostile names; many points."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from saccade.features.table import FeatureTable, save_table
from web_waiting import Held, Late, until, waited_for

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "\"><svg onload=document.title='owned'>",
    "'); DROP TABLE features; --",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    '=HYPERLINK("http://x")',
    "\u202eevil\u202c \x07 \U0001f600",
]
MANY = 100_000


@pytest.fixture(scope="module")
def tables(site):
    """A real table of the run `short`, and one of invented vectors with hostile names in the run `long`."""
    from saccade.api import embed

    embed(site.run, "synthetic:tissue?n=24&size=32", out=site.run / "features.parquet")
    rng = np.random.default_rng(0)
    label = np.arange(64) % len(HOSTILE)
    features = (4 * np.eye(8)[label] + 0.2 * rng.standard_normal((64, 8))).astype(np.float32)
    names, labels = [f"{HOSTILE[c]} {i}" for i, c in enumerate(label)], [HOSTILE[c] for c in label]
    groups = [f"g{i % 5}" for i in range(64)]
    table = FeatureTable(features, names, labels, groups, ["train", "test"] * 32, [None] * 64, "invented", {})
    save_table(site.second / "features.parquet", table)
    yield site.run / "features.parquet", site.second / "features.parquet"
    for run in (site.run, site.second):
        (run / "features.parquet").unlink()


def open_map(window, name=None):
    window.locator("#pages a[data-page=map]").click()
    window.wait_for_selector(".page-map[data-ready]")
    if name:
        window.get_by_label("Table").select_option(label=name)
        window.wait_for_function("() => location.hash.includes('table=')")
        window.wait_for_selector(".page-map[data-ready] .legend li")


def ask_the_first_point(window):
    window.locator(".plot .above").focus()
    window.keyboard.press("ArrowRight")
    window.keyboard.press("Enter")
    window.wait_for_selector(".hits li")


def everything_in(folder):
    return {file for file in folder.rglob("*") if file.is_file()}


def test_a_run_without_a_table_says_the_command(window, site):
    open_map(window)
    said = window.locator(".command code").all_inner_texts()
    assert len(said) == 2 and said[0].startswith("saccade embed ") and "--out" in said[0] and str(site.run) in said[0]


def test_the_vectors_of_a_run_are_computed_when_asked(window, site):
    """Into the folder of the run, and nowhere else; the map of them is open then."""
    before = everything_in(site.run.parent)
    open_map(window)
    short = window.locator(".commands li").filter(has_text="short")
    short.get_by_role("button", name="Compute now").click()
    short.get_by_text("Computing features").wait_for()
    window.goto(f"{site.origin}/#/runs")  # going elsewhere stops nothing
    open_map(window)
    try:
        window.wait_for_selector(".page-map[data-ready] .legend li", timeout=120_000)
        assert "24 images" in window.locator(".words").inner_text()
        assert everything_in(site.run.parent) - before == {site.run / "features.parquet"}
        assert window.locator(".commands li").count() == 1
    finally:
        (site.run / "features.parquet").unlink(missing_ok=True)


def test_computing_vectors_can_be_stopped_and_says_what_went_wrong(window, site):
    open_map(window)
    short, long = (window.locator(".commands li").filter(has_text=name) for name in ("short", "long"))
    short.get_by_role("button", name="Compute now").click()
    short.get_by_role("button", name="Stop").click()
    short.get_by_role("button", name="Compute now").wait_for()
    assert not (site.run / "features.parquet").exists()
    long.get_by_role("button", name="Compute now").click()  # its images are invented
    assert "no such file" in long.get_by_role("alert").inner_text(timeout=120_000)


def test_a_table_that_is_being_read_is_waited_for_in_words(window, site, tables):
    held = Held(window, "**/api/map/*")
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/map")
    until(window, "document.querySelector('.page [role=status]')?.innerText.startsWith('Reading short')")
    assert waited_for(window) == "Reading short and working out its map."
    held.let_go()
    window.wait_for_selector(".page-map[data-ready]")
    assert window.locator(".waiting").count() == 0


def test_points_neighbours_and_votes_by_keys(window, tables):
    open_map(window, "short")
    assert window.locator(".legend .entry").count() > 1
    window.locator(".plot .above").focus()
    window.keyboard.press("ArrowRight")
    window.wait_for_selector(".point-card small")
    assert window.locator(".point-card img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 32
    first = window.locator(".point-card small").inner_text()
    window.keyboard.press("Enter")
    window.wait_for_selector(".hits li")
    assert window.locator(".hits li").count() == 10 and first in window.locator(".near .asked").inner_text()
    assert "exact; 24 images" in window.locator(".near").inner_text()
    assert "vote for" in window.locator(".votes h3").inner_text()
    assert re.match(r"A vote of \d+ of \d+ \w+, with", window.locator(".votes p").inner_text())
    group = window.evaluate("document.querySelector('.point-card').innerText")
    assert "group" in group
    window.locator(".hits button").first.click()  # a neighbour becomes the question
    window.wait_for_function("first => !document.querySelector('.near .asked').innerText.includes(first)", arg=first)


def test_filters_are_of_the_answer(window, tables):
    open_map(window, "short")
    ask_the_first_point(window)
    label = window.locator(".legend .name").first.inner_text()
    window.locator(".near summary").click()
    window.get_by_label("Column").select_option("label")
    window.get_by_label("Value").select_option(label)
    window.get_by_role("button", name="Only these").click()
    window.wait_for_function(
        "label => [...document.querySelectorAll('.hits .what')].every(one => one.innerText === label)", arg=label
    )
    assert 0 < window.locator(".hits li").count() < 10
    window.locator(".chip").click()
    window.wait_for_function("() => document.querySelectorAll('.hits li').length === 10")


def test_hostile_names_are_shown_not_run(window, tables):
    open_map(window, "long")
    shown = window.locator(".legend .name").all_inner_texts()
    assert len(shown) == len(HOSTILE)
    assert {text.strip() for text in HOSTILE[:6]} <= {text.strip() for text in shown}
    ask_the_first_point(window)
    window.get_by_role("button", name="Select visible").click()
    window.wait_for_selector(".chosen button")
    with window.expect_download() as saved:
        window.locator("[data-save=svg]").click()
    drawing = saved.value.path().read_text()
    assert "<script>document" not in drawing and "&lt;script&gt;document" in drawing and "<use" in drawing
    with window.expect_download() as saved:
        window.locator("[data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert len(rows) == 64 and {row["map_selected"] for row in rows} == {"1"}
    assert sum(row["label"] == "'" + HOSTILE[6] for row in rows) == 8  # no formula in a spreadsheet
    assert {row["label"] for row in rows} >= set(HOSTILE[:6])
    assert window.title() == "Map · saccade"


def test_the_lasso_counts_what_it_holds(window, tables):
    open_map(window, "long")
    window.locator("[data-mode=lasso]").click()
    box = window.locator(".plot .above").bounding_box()
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]
    for n, (x, y) in enumerate(corners):
        window.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if n == 0:
            window.mouse.down()
    window.mouse.up()
    window.wait_for_selector("section[aria-label=Selection] table")
    assert window.locator("section[aria-label=Selection] h2").inner_text() == "Selection: 64"
    counts = window.locator("section[aria-label=Selection] tbody td:nth-child(2)").all_inner_texts()
    assert counts == ["8"] * len(HOSTILE)
    window.get_by_label("Colour and shape by").select_option("group")
    window.wait_for_function("() => document.querySelector('section[aria-label=Selection] th').innerText === 'group'")
    assert window.locator("section[aria-label=Selection] tbody tr").count() == 5
    with window.expect_download() as saved:
        window.get_by_role("button", name="Save the list").click()
    assert len(list(csv.reader(io.StringIO(saved.value.path().read_text())))) == 65
    window.locator(".plot .above").focus()
    window.keyboard.press("Escape")
    assert window.locator("section[aria-label=Selection] table").count() == 0


def test_late_colours_do_not_replace_the_newer_ones(window, tables):
    open_map(window, "long")
    label = Late(window, "**/values?name=label*")
    window.get_by_label("Colour and shape by").select_option("label")
    window.get_by_label("Colour and shape by").select_option("group")
    window.wait_for_function("() => document.querySelectorAll('.legend .entry').length === 5")
    label.let_go()
    assert window.locator(".legend .entry").count() == 5
    window.get_by_label("Colour and shape by").select_option("cluster")
    window.wait_for_function("() => document.querySelector('.legend .name').innerText === 'cluster 1'")
    three = Late(window, "**/codes?name=cluster&clusters=3")
    window.get_by_label("Clusters").fill("3")
    window.get_by_label("Clusters").press("Enter")
    window.get_by_label("Clusters").fill("4")
    window.get_by_label("Clusters").press("Enter")
    window.wait_for_function("() => document.querySelectorAll('.legend .entry').length === 4")
    three.let_go()
    assert window.locator(".legend .entry").count() == 4


def test_the_very_file_that_is_asked_with_has_no_vote(tmp_path):
    from saccade.web.catalog import Upload
    from saccade.web.open_table import OpenedTable

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    hashes = [hashlib.sha256(file.getvalue()).hexdigest(), *"bcd"]
    nothing, labels = [None] * 4, ["own", "other", "other", "other"]
    table = FeatureTable(np.eye(4, dtype=np.float32), list("abcd"), labels, nothing, nothing, hashes, "m", {})
    save_table(tmp_path / "features.parquet", table)
    opened = OpenedTable(tmp_path / "features.parquet")
    opened.__dict__["searcher"] = SimpleNamespace(vector=lambda sample: table.features[0])
    found = opened.like_upload(Upload("a.png", file.getvalue()), 4, [], None)
    assert [hit["same_file"] for hit in found["hits"]] == [True, False, False, False]
    assert found["guess"]["label"] == "other" and "own" not in found["guess"]["fractions"]


def test_filters_that_nothing_fits_are_said_so(window, tables):
    open_map(window, "long")
    ask_the_first_point(window)
    window.locator("details summary", has_text="Filter").click()
    window.get_by_label("Column").select_option("split")
    until(window, "[...document.querySelectorAll('.near select option')].some((one) => one.value === 'train')")
    window.get_by_label("Value").select_option("train")
    window.get_by_role("button", name="Only these").click()
    window.get_by_role("button", name="Only these").click()
    assert window.locator(".chip").count() == 1  # once is enough
    window.get_by_role("button", name="Not these").click()
    until(window, "document.querySelector('.hits').innerText.includes('Nothing in the table fits')")


def test_columns_without_values_are_not_offered(tmp_path):
    from saccade.web.open_table import OpenedTable

    nothing, groups = [None] * 8, ["a", "b"] * 4
    table = FeatureTable(np.eye(8, dtype=np.float32), list("abcdefgh"), nothing, groups, nothing, nothing, "m", {})
    save_table(tmp_path / "features.parquet", table)
    assert OpenedTable(tmp_path / "features.parquet").about()["columns"] == ["group"]


def test_clusters_and_the_legend(window, tables):
    open_map(window, "long")
    window.get_by_label("Colour and shape by").select_option("cluster")
    window.wait_for_function("() => document.querySelector('.legend .name').innerText === 'cluster 1'")
    assert window.locator(".legend .count").all_inner_texts() == ["8"] * 8
    window.get_by_label("Clusters").fill("4")
    window.get_by_label("Clusters").press("Enter")
    window.wait_for_function("() => document.querySelectorAll('.legend .entry').length === 4")
    assert len(set(window.locator(".legend path").evaluate_all("p => p.map(x => x.getAttribute('d'))"))) == 4
    window.locator(".legend .only").nth(1).click()
    assert window.locator(".legend .entry[aria-pressed=true]").count() == 1
    with window.expect_download() as saved:
        window.locator("[data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert {row["cluster"] for row in rows} == {"cluster 2"}
    with window.expect_download() as saved:
        window.locator("[data-save=png]").click()
    assert saved.value.path().read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def taken(site, tmp_path):
    """A table on the catalog whose columns have the names of what the map makes."""
    rng, own = np.random.default_rng(1), [f"own {i}" for i in range(12)]
    taken = dict.fromkeys(("row", "x", "y", "selected", "map_x", "cluster (k-means)"), own)
    taken["cluster"] = ["mine", "yours"] * 6
    nothing = [None] * 12
    features = rng.standard_normal((12, 8)).astype(np.float32)
    ids = [f"{i}.png" for i in range(12)]
    save_table(tmp_path / "taken.parquet", FeatureTable(features, ids, *[nothing] * 4, "m", {}, taken))  # type: ignore[call-arg]
    before, site.catalog.tables = site.catalog.tables, (str(tmp_path / "taken.parquet"),)
    yield own
    site.catalog.tables = before


@pytest.mark.parametrize(("count", "legend"), [(1, ["all"]), (5, [f"cluster {n}" for n in range(1, 6)])])
def test_few_images_without_labels_are_shown(window, site, tmp_path, monkeypatch, count, legend):
    nothing, ids = [None] * count, [f"{i}.png" for i in range(count)]
    features = np.eye(8, dtype=np.float32)[:count]
    save_table(tmp_path / "few.parquet", FeatureTable(features, ids, *[nothing] * 4, "m", {}))  # type: ignore[call-arg]
    monkeypatch.setattr(site.catalog, "tables", (str(tmp_path / "few.parquet"),))
    open_map(window)
    assert window.locator(".legend .name").all_inner_texts() == legend
    assert not window.locator(".page [role=alert]").count()
    ink = "[...document.querySelector('.plot canvas').getContext('2d').getImageData(0, 0, 4000, 4000).data]"
    until(window, f"new Set({ink}.filter((_, i) => i % 4 === 0)).size > 1")


def test_columns_of_the_names_that_the_map_makes_stay_as_they_are(window, site, taken):
    open_map(window)
    window.wait_for_selector(".legend li")
    colour = window.get_by_label("Colour and shape by")
    colour.select_option("cluster")
    until(window, "document.querySelector('.legend .name').innerText === 'mine'")
    colour.select_option("cluster (k-means) (k-means)")
    window.get_by_label("Clusters").fill("3")
    window.get_by_label("Clusters").press("Enter")
    until(window, "document.querySelectorAll('.legend .entry').length === 3")
    with window.expect_download() as saved:
        window.locator("[data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    for name in ("row", "x", "y", "selected", "map_x", "cluster (k-means)"):
        assert [row[name] for row in rows] == taken
    assert {row["cluster"] for row in rows} == {"mine", "yours"}
    assert {row["cluster (k-means) (k-means)"] for row in rows} == {"cluster 1", "cluster 2", "cluster 3"}
    assert len({float(row["map_x_"]) for row in rows}) == len({float(row["map_y"]) for row in rows}) == 12
    assert {row["map_selected"] for row in rows} == {"0"}
    colour.select_option("cluster")
    until(window, "document.querySelector('.legend .name').innerText === 'mine'")
    ask_the_first_point(window)
    assert window.locator(".near [role=alert]").count() == 0 and window.locator(".hits li").count() == 10


def test_tsne_in_the_background_is_cancelled_and_made(window, tables):
    pytest.importorskip("openTSNE", reason='this test needs pip install "saccade[map]"')
    open_map(window, "long")
    window.locator("[data-kind=tsne]").click()
    window.get_by_role("button", name="Cancel").click()
    window.wait_for_selector(".job", state="hidden")
    assert window.locator("[data-kind=pca]").get_attribute("aria-pressed") == "true"
    window.locator("[data-kind=tsne]").click()
    window.wait_for_selector("[data-kind=tsne][aria-pressed=true]", timeout=120_000)
    assert "t-SNE" in window.locator(".words").inner_text()


def test_an_upload_finds_its_like(window, tables):
    """The file of an image of the table finds that image; the model of the run embeds it."""
    from PIL import Image

    from saccade.api import open_source

    source, file = open_source("synthetic:tissue?n=24&size=32"), io.BytesIO()
    Image.fromarray(source.read(7).pixels.transpose(1, 2, 0)).save(file, "PNG")
    open_map(window, "short")
    upload = {"name": "<b>tile</b>.png", "mimeType": "image/png", "buffer": file.getvalue()}
    window.locator(".near input[type=file]").set_input_files(upload)
    window.wait_for_selector(".hits li", timeout=60_000)
    assert window.locator(".asked strong").inner_text() == "<b>tile</b>.png"
    first = window.locator(".hits button").first
    assert first.get_attribute("title").startswith(f"{source.records[7].id}: similarity 1.0000")
    assert window.locator(".hits li").count() == 10


def test_what_is_not_there_is_not_found(window, tables, site):
    asked = ["map/0000000000000000", "map/..%2f..%2fetc%2fpasswd", "map/%2e%2e/x", "map/x/thumb/0", "map/x"]
    assert {window.request.get(f"{site.origin}/api/{path}").status for path in asked} == {404}
    key = site.catalog.id_of("table", str(tables[0]))
    assert window.request.get(f"{site.origin}/api/map/{key}/thumb/0").status == 200
    for row in (24, -1, 10**6):
        assert window.request.get(f"{site.origin}/api/map/{key}/thumb/{row}").status == 400


def test_a_hundred_thousand_points_stay_fluid(window):
    """Painting and finding points, measured in the browser; the bound is loose, since others use the machine too."""
    times = window.evaluate(
        """async (count) => {
          const { Scatter } = await import("/static/scatter.js");
          const { looks } = await import("/static/embedding_map_legend.js");
          const scatter = new Scatter(), places = new Float32Array(2 * count);
          let state = 7;
          const draw = () => { state = (Math.imul(state, 1664525) + 1013904223) >>> 0; return state / 2 ** 32; };
          for (let i = 0; i < count; i++) {
            places[2 * i] = (i % 12) + draw() + draw() + draw();
            places[2 * i + 1] = (i % 5) + draw() + draw() + draw();
          }
          scatter.setPlaces(places);
          scatter.looks = looks(20);
          for (let i = 0; i < count; i++) scatter.codes[i] = i % 12;
          scatter.size(880, 576, 1);
          scatter.draw();
          const frames = [], finds = [];
          for (let n = 0; n < 15; n++) {
            scatter.pan(3, -2);
            scatter.zoom(1.03);
            const began = performance.now();
            scatter.draw();
            frames.push(performance.now() - began);
          }
          scatter.at(1, 1);
          const began = performance.now();
          for (let n = 0; n < 100; n++) finds.push(scatter.at(8 * n, 300));
          const point = scatter.at(440, 288, 50), [x, y] = scatter.toScreen(point);
          let nearest = -1, least = Infinity;
          for (let i = 0; i < count; i++) {
            const [px, py] = scatter.toScreen(i), d = (px - 440) ** 2 + (py - 288) ** 2;
            if (d < least) { least = d; nearest = i; }
          }
          return { frames, find: (performance.now() - began) / 100, same: point === nearest };
        }""",
        MANY,
    )
    frames = times["frames"]
    print(f"{MANY:,} points: {min(frames):.1f} to {max(frames):.1f} ms a frame, find {times['find']:.3f}")
    assert min(frames) < 100 and times["find"] < 10 and times["same"]
