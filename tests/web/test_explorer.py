"""The explorer in a real browser: what is shown is what the network computes, by mouse and by keys; and saved."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from saccade.attention.explorer import Explorer, ViewRequest
from saccade.base.contracts import InputSpec, Sample
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model
from saccade.web.catalog import CatalogRun
from web_requests import TABLET, raw_request
from web_waiting import Held, Late, refused, until

EXPLAINED = "document.querySelector('.explained').innerText"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
DRAWN = "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')"


@pytest.fixture
def explorer(window):
    until(window, DRAWN)
    return window


def saved(page, kind: str) -> bytes:
    with page.expect_download() as download:
        page.locator(f"[data-save={kind}]").click()
    return download.value.path().read_bytes()


def table(page) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(saved(page, "csv").decode())))


def values(rows: list[dict[str, str]], panel: str = "A") -> np.ndarray:
    return np.array([float(row["value"]) for row in rows if row["panel"] == panel])


def choose_model(page, name: str, side: str = "Model") -> None:
    page.get_by_label(side, exact=True).select_option(label=name)
    until(page, DRAWN)


def patch(page, row: int, column: int, of: int) -> dict[str, float]:
    """Where a patch lies on the canvas of panel A."""
    box = page.locator(".map").first.bounding_box()
    return {"x": (column + 0.5) * box["width"] / of, "y": (row + 0.5) * box["height"] / of}


def first_image(site) -> Sample:
    run = next(run for run in site.catalog.runs if run.folder == site.run)
    _, images = site.catalog.images(run, 0, 1)
    return site.catalog.sample(images[0].id)


def test_the_class_token_asks_first_and_the_numbers_are_the_networks(explorer, site):
    rows = table(explorer)
    sample = first_image(site)
    seen = Explorer().view(ViewRequest(str(site.run), "image"), sample)
    last = seen.qkv.depth - 1
    wanted = seen.qkv.rows(last, 0)[:, 0, seen.prefix :].mean(axis=0)
    np.testing.assert_allclose(values(rows), wanted, rtol=1e-4)
    assert rows[0]["head"] == "mean" and rows[0]["layer"] == str(last)
    name = f"{sample.record.id}, {sample.record.label}"
    context = explorer.locator(".panel .context").first.inner_text()
    assert context == f"{name} · the class token asks; layer {last}, mean of all heads"
    assert (rows[0]["query"], rows[0]["image"]) == ("class token", sample.record.id)
    assert rows[0]["label"] == sample.record.label
    explorer.locator(".map").first.click(position=patch(explorer, 1, 2, of=4))
    until(explorer, "document.querySelector('.context').innerText.includes('the patch in row 1, column 2 asks')")
    assert table(explorer)[0]["query"] == "1/2"
    assert f"{name} · saccade" in saved(explorer, "svg").decode()


def test_a_click_asks_a_patch_and_pointing_explains_the_pair(explorer, site):
    explorer.locator(".map").first.click(position=patch(explorer, 1, 2, of=4))
    explorer.locator(".map").first.hover(position=patch(explorer, 3, 0, of=4))
    until(explorer, "document.querySelector('.explained').innerText.includes('row 3, column 0')")
    text = explorer.locator(".explained").inner_text()
    assert "what the patch in row 1, column 2 asks" in text
    sample = first_image(site)
    qkv = Explorer().view(ViewRequest(str(site.run), "image"), sample).qkv
    layer, head = (int(number) for number in re.search(r"Layer (\d+), head (\d+)", text).groups())
    pair = qkv.pair(layer, head, 1 + 6, 1 + 12)
    shown = explorer.locator("[data-step=score]").inner_text().replace("−", "-")
    dot, score = re.search(r"= (\S+) / √\d+ = (\S+)", shown).groups()
    assert float(dot) == pytest.approx(pair.dot, rel=1e-2, abs=2e-5)
    assert float(score) == pytest.approx(pair.score, rel=1e-2, abs=2e-5)
    weight = explorer.locator("[data-step=weight]").inner_text().replace("−", "-").split("= ")[-1]
    assert float(weight) == pytest.approx(pair.weight, rel=1e-2)


def test_hovering_shows_the_row_of_the_patch_under_the_pointer(explorer, site):
    explorer.locator(".map").first.hover(position=patch(explorer, 2, 2, of=4))
    until(explorer, "document.querySelector('#said')")
    explorer.wait_for_timeout(150)
    sample = first_image(site)
    qkv = Explorer().view(ViewRequest(str(site.run), "image"), sample).qkv
    wanted = qkv.rows(qkv.depth - 1, 1 + 10)[:, 0, 1:].mean(axis=0)
    words = explorer.locator(".words").first.inner_text()
    place = int(wanted.argmax())
    assert f"row {place // 4}, column {place % 4}" in words


def test_everything_works_by_keys(explorer):
    explorer.locator(".map").first.focus()
    explorer.keyboard.press("ArrowRight")
    until(explorer, "document.getElementById('said').textContent.startsWith('The patch in row 2, column 3')")
    explorer.keyboard.press("ArrowUp")
    until(explorer, "document.getElementById('said').textContent.startsWith('The patch in row 1, column 3')")
    explorer.keyboard.press("Shift+ArrowLeft")
    until(
        explorer, "document.querySelector('.explained').innerText.includes('what the patch in row 2, column 1 offers')"
    )
    explorer.keyboard.press("[")
    until(explorer, "document.querySelector('.slider output').textContent.startsWith('4 of')")
    explorer.keyboard.press(".")
    until(explorer, "document.querySelector('.heads button').getAttribute('aria-pressed') === 'true'")
    explorer.keyboard.press("c")
    until(explorer, "document.getElementById('said').textContent.startsWith('The class token')")
    outline = explorer.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_every_control_has_a_name(explorer):
    controls = "main button, main select, main input, main canvas[tabindex]"
    named = "node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length"
    outer = f"all => all.filter(node => !({named})).map(node => node.outerHTML)"
    unnamed = explorer.eval_on_selector_all(controls, outer)
    assert unnamed == []


def test_the_order_question_with_and_without_positions(explorer):
    choose_model(explorer, "random:vit_micro_patch8")
    explorer.get_by_role("button", name="Shuffle patches").click()
    until(explorer, "document.querySelectorAll('.panel:not([hidden])').length === 2")
    explorer.wait_for_selector(".difference [data-most]")
    for box in explorer.get_by_label("no positions").all():
        box.check()
        until(explorer, DRAWN)
    until(explorer, "document.querySelector('.difference').innerText.includes('The map is the same up to the order')")
    rows = table(explorer)
    a = {row["patch"]: float(row["value"]) for row in rows if row["panel"] == "A"}
    b = {row["patch"]: float(row["value"]) for row in rows if row["panel"] == "B"}
    assert [row["patch"] for row in rows if row["panel"] == "B"] != list(a)
    assert max(abs(a[one] - b[one]) for one in a) < 1e-6


def test_two_models_side_by_side(explorer):
    choose_model(explorer, "short, random weights", side="Compare with")
    explorer.wait_for_selector(".difference [data-most]")
    rows = table(explorer)
    assert {row["panel"] for row in rows} == {"A", "B"}
    assert np.abs(values(rows) - values(rows, "B")).max() > 1e-6


def test_a_cnn_says_that_it_has_no_attention(explorer):
    choose_model(explorer, "random:resnet10_w16")
    until(explorer, "document.querySelector('.tools').innerText.includes('has no attention')")
    assert explorer.get_by_label("Head", exact=True).count() == 0
    assert {row["kind"] for row in table(explorer)} == {"similarity"}


def test_rollout_can_be_left_while_a_cnn_stands_beside_it(explorer):
    """A has no rollout, B has: the switch stays for B, A says what it shows instead, and the numbers beside are B's."""
    choose_model(explorer, "random:vit_micro_patch8", side="Compare with")
    until(explorer, "document.querySelectorAll('.panel:not([hidden]) .words strong').length === 2")
    explorer.get_by_label("Method").select_option("rollout")
    until(explorer, f"{EXPLAINED}.includes('Rollout combines')")
    choose_model(explorer, "random:resnet10_w16")
    until(explorer, "document.querySelector('.tools').innerText.includes('resnet10_w16 has no attention')")
    assert {(row["panel"], row["kind"]) for row in table(explorer)} == {("A", "similarity"), ("B", "rollout")}
    assert explorer.get_by_label("Method").input_value() == "rollout"
    until(explorer, f"{EXPLAINED}.includes('Rollout combines')")
    explorer.get_by_label("Method").select_option("attention")
    until(explorer, f"{EXPLAINED}.includes('what the class token asks')")
    assert {(row["panel"], row["kind"]) for row in table(explorer)} == {("A", "similarity"), ("B", "attention")}
    assert explorer.locator(".all summary").inner_text() == "All layers and heads of B"
    assert explorer.locator(".all-layers").is_visible()


@pytest.fixture
def five_channels(site, tmp_path):
    """A model on the catalog that images of three channels do not fit."""
    network = build("vit_micro_patch8_w32", channels=5, size_px=32)
    save_model(tmp_path / "model", network, InputSpec(5, 32, 0.0, 255.0, (0.5,) * 5, (0.25,) * 5), about={})
    (tmp_path / "config.yaml").write_text("data: {}")
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "five channels", tmp_path)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


def test_a_refused_model_leaves_no_map_of_another(explorer, site, five_channels, refusals):
    refusals.append("status of 400")
    explorer.reload()
    until(explorer, DRAWN)
    explorer.get_by_label("Model", exact=True).select_option(label="five channels")
    reason = explorer.locator(".panel [role=alert]:visible")
    reason.wait_for()
    assert "channels" in reason.inner_text()
    assert explorer.locator(".panel figcaption").first.inner_text() == "five channels"
    assert not explorer.locator(".map:visible, .words strong, .heads button, .all:visible, .vector").count()
    until(explorer, f"location.hash.includes('a={site.catalog.model_id(str(five_channels.folder))}')")
    explorer.get_by_label("Compare with").select_option(label="short")
    until(explorer, "document.querySelectorAll('.panel .words strong').length === 1")
    assert reason.is_visible() and explorer.locator(".map:visible").count() == 1  # the other one is not held back
    assert {row["panel"] for row in table(explorer)} == {"B"}
    choose_model(explorer, "random:vit_micro_patch8")
    until(explorer, "document.querySelectorAll('.panel .words strong').length === 2")
    assert explorer.locator(".map:visible").count() == 2 and not explorer.locator("[role=alert]:visible").count()


@pytest.fixture
def windows(site, tmp_path):
    """A model on the catalog in which a patch sees the 2 x 2 patches of its window and the class token."""
    network = build("vit_micro_patch8_w32_window2", size_px=32)
    save_model(tmp_path / "model", network, InputSpec(3, 32, 0.0, 255.0, (0.5,) * 3, (0.25,) * 3), about={})
    (tmp_path / "config.yaml").write_text("data: {}")
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "windows", tmp_path)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


def test_an_even_share_is_of_the_keys_that_the_query_sees(explorer, windows):
    explorer.reload()
    until(explorer, DRAWN)
    choose_model(explorer, "windows")
    until(explorer, f"{EXPLAINED}.includes('Softmax over all 17 keys')")  # the class token sees all
    assert "an even share is 5.9 %" in explorer.locator(".words").first.inner_text()
    explorer.locator(".map").first.click(position=patch(explorer, 1, 2, of=4))
    until(explorer, f"{EXPLAINED}.includes('what the patch in row 1, column 2 asks')")
    assert "Softmax over the 5 keys that this query sees" in explorer.locator(".explained").inner_text()
    assert "An even share would be 20.0 %" in explorer.locator(".explained").inner_text()
    assert "an even share is 20.0 %" in explorer.locator(".words").first.inner_text()


def test_layers_stay_where_a_cnn_is_looked_at(explorer):
    explorer.locator(".map").first.focus()
    for _ in range(2):
        explorer.keyboard.press("[")
    until(explorer, "document.querySelector('.slider output').textContent.startsWith('3 of')")
    choose_model(explorer, "random:vit_micro_patch8", side="Compare with")
    choose_model(explorer, "random:resnet10_w16")
    until(explorer, "document.querySelector('.slider output').textContent.startsWith('3 of')")
    assert explorer.evaluate("document.activeElement.labels?.[0].textContent") != ""
    choose_model(explorer, "short")
    until(explorer, "document.querySelector('.slider output').textContent.startsWith('3 of')")


def test_an_address_opens_the_same_view(explorer, site):
    explorer.get_by_label("Top attention mass").fill("50")
    explorer.get_by_label("smooth").check()
    explorer.get_by_label("Size").focus()
    explorer.get_by_label("Size").select_option("448")
    until(explorer, DRAWN)
    until(explorer, "document.querySelector('.words').innerText.includes('patches hold')")
    until(explorer, "location.hash.includes('size=448') && location.hash.includes('smooth=1')")
    assert explorer.evaluate("document.activeElement.labels[0].textContent") == "Size"  # the keyboard keeps its place
    explorer.locator(".map").first.focus()
    explorer.keyboard.press("ArrowRight")
    until(explorer, "location.hash.includes('asked=')")
    said = "document.querySelector('.words').innerText"
    before = explorer.evaluate(said)
    explorer.reload()
    until(explorer, DRAWN)
    until(explorer, "document.querySelector('.words').innerText.includes('patches hold')")
    assert explorer.evaluate(said) == before
    assert explorer.get_by_label("smooth").is_checked() and explorer.get_by_label("Size").input_value() == "448"


def test_an_answer_after_the_page_was_left_keeps_the_address_of_the_next_one(explorer):
    pair = Held(explorer, "**/attention/pair?*")
    with explorer.expect_response("**/attention/all-layers?*"):
        explorer.get_by_role("button", name="Query: class token").click()
    while not pair.kept:
        explorer.wait_for_timeout(20)
    explorer.evaluate("location.hash = '/volumes'")
    explorer.wait_for_selector(".page-volumes[data-ready]")
    explorer.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert explorer.evaluate("location.hash") == "#/volumes"


def test_rollout_and_the_kept_share(explorer, site):
    explorer.get_by_label("Method").select_option("rollout")
    until(explorer, "document.querySelector('.explained').innerText.includes('Rollout combines')")
    explorer.get_by_label("Top attention mass").fill("60")
    until(explorer, "document.querySelector('.words').innerText.includes('patches hold')")
    rows = table(explorer)
    sample = first_image(site)
    wanted = Explorer().view(ViewRequest(str(site.run), "image"), sample).qkv.rollout(0)[0, 1:]
    np.testing.assert_allclose(values(rows), wanted, rtol=1e-4)
    from saccade.viz.patch_maps import threshold_mask

    assert [row["shown"] == "1" for row in rows] == threshold_mask(wanted[None], 0.6)[0].tolist()


def test_rollout_of_a_network_with_several_heads(explorer, site):
    """The numbers under both pictures are rollout's, and stay so when another model is chosen; then attention again."""
    sample = first_image(site)
    choose_model(explorer, "random:vit_micro_patch8")
    choose_model(explorer, "short", side="Compare with")
    until(explorer, "document.querySelectorAll('.panel:not([hidden]) .words strong').length === 2")
    explorer.get_by_label("Method").select_option("rollout")
    until(explorer, "document.querySelector('.explained').innerText.includes('Rollout combines')")
    wanted = {
        "A": Explorer().view(ViewRequest("random:vit_micro_patch8", "image"), sample).qkv.rollout(0)[0],
        "B": Explorer().view(ViewRequest(str(site.run), "image"), sample).qkv.rollout(0)[0],
    }
    check_rollout(explorer, wanted)
    assert explorer.locator(".heads button:visible").count() == 0
    choose_model(explorer, "short, random weights")
    choose_model(explorer, "random:vit_micro_patch8", side="Compare with")
    until(explorer, "document.querySelectorAll('.panel')[1].innerText.startsWith('B: random:vit_micro')")
    fresh = Explorer().view(ViewRequest(str(site.run), "image", True), sample).qkv.rollout(0)[0]
    check_rollout(explorer, {"A": fresh, "B": wanted["A"]})
    explorer.get_by_label("Method").select_option("attention")
    until(explorer, "document.querySelectorAll('.panel')[1].querySelectorAll('.heads button').length === 4")
    until(explorer, "document.querySelectorAll('.heads:not([hidden])').length === 2")
    assert {row["kind"] for row in table(explorer)} == {"attention"}


def check_rollout(page, wanted: dict[str, np.ndarray]) -> None:
    """What is saved, and below each picture the line, the colour bar and the class token's share, is rollout's."""
    rows = table(page)
    assert {row["kind"] for row in rows} == {"rollout"} and {row["panel"] for row in rows} == set(wanted)
    for number, (panel, row) in enumerate(wanted.items()):
        np.testing.assert_allclose(values(rows, panel), row[1:], rtol=1e-3)
        words = page.locator(".panel .words").nth(number).inner_text()
        most, taken = (float(one) for one in re.search(r"with ([\d.]+) %.*takes ([\d.]+) %", words).groups())
        assert (most, taken) == pytest.approx((100 * row[1:].max(), 100 * row[0]), rel=0.05)
    # One scale, in multiples of the even share, from 0 to the largest of all.
    rows_of = list(wanted.values())
    most = max(2.0, *(row[1:].max() * len(row) for row in rows_of))
    for number in range(len(rows_of)):
        assert ends(page, number) == pytest.approx((0, most), rel=0.01)


def ends(page, number: int) -> tuple[float, float]:
    """The two ends of the colour bar of a panel."""
    low, high = (
        page.locator(".panel .scale")
        .nth(number)
        .locator(".ramp")
        .evaluate("bar => [bar.previousSibling.textContent, bar.nextSibling.textContent]")
    )
    return tuple(float(text.replace("−", "-").split()[0]) for text in (low, high))


def test_random_weights_look_uniform_until_stretched(explorer):
    choose_model(explorer, "random:vit_micro_patch8")
    share = np.array([float(row["times_even_share"]) for row in table(explorer)])
    np.testing.assert_allclose(share, values(table(explorer)) * (1 + len(share)), rtol=1e-3)
    assert share.max() < 2
    assert ends(explorer, 0) == (0, 2)
    assert explorer.locator(".scale .even-mark").first.get_attribute("style") == "left: 50%;"
    assert "Almost uniform" in explorer.locator(".words").first.inner_text()
    flat = set(re.findall(r'fill="(rgb[^"]*)" fill-opacity', saved(explorer, "svg").decode()))
    explorer.get_by_label("stretch", exact=True).check()
    until(explorer, "location.hash.includes('stretch=1')")
    assert ends(explorer, 0) == pytest.approx((share.min(), share.max()), rel=0.01)
    stretched = set(re.findall(r'fill="(rgb[^"]*)" fill-opacity', saved(explorer, "svg").decode()))

    def spread(colours: set[str]) -> float:
        reds = [float(text.removeprefix("rgb(").split(",")[0]) for text in colours]
        return max(reds) - min(reds)

    assert spread(stretched) > 200 and spread(flat) < spread(stretched)


def test_what_is_saved_is_what_is_shown(explorer):
    drawing = saved(explorer, "svg").decode()
    assert drawing.count("fill-opacity") == 16 and "the class token asks; layer 5, mean of all heads" in drawing
    picture = Image.open(io.BytesIO(saved(explorer, "png")))
    assert picture.width == 2 * (448 + 48)
    centre = np.asarray(picture.convert("RGB"))[2 * (64 + 56), 2 * (24 + 56)]
    shown = explorer.evaluate(
        "() => [...document.querySelector('.map').getContext('2d').getImageData(56, 56, 1, 1).data].slice(0, 3)"
    )
    assert np.abs(centre.astype(int) - shown).max() <= 12


def test_a_file_has_the_layer_of_its_numbers_while_another_is_on_its_way(explorer):
    before = table(explorer)
    rows = Held(explorer, "**/attention/rows?*layer=2&*")
    explorer.get_by_label("Layer", exact=True).fill("2")
    until(explorer, "document.querySelector('.slider output').textContent.startsWith('2 of')")
    assert table(explorer) == before and before[0]["layer"] == "5"
    assert "asks; layer 5," in saved(explorer, "svg").decode()
    rows.let_go()
    explorer.wait_for_load_state("networkidle")
    after = table(explorer)
    assert after[0]["layer"] == "2" and np.abs(values(after) - values(before)).max() > 1e-6


def test_a_file_has_the_name_of_its_image_while_another_is_on_its_way(explorer):
    def named() -> str:
        with explorer.expect_download() as download:
            explorer.locator("[data-save=csv]").click()
        return download.value.suggested_filename

    before, look = named(), Held(explorer, "**/attention/view?*")
    explorer.locator(".thumbs button").nth(1).click()
    until(explorer, "document.querySelector('[aria-busy]')")
    assert named() == before
    look.let_go()
    until(explorer, DRAWN)
    assert named() != before


def test_numbers_that_do_not_come_are_said_and_the_controls_go_back(explorer, refusals):
    refusals.append("status of 500")
    before = table(explorer)
    with refused(explorer, "**/attention/rows?*layer=2&*"):
        explorer.get_by_label("Layer", exact=True).fill("2")
        explorer.locator(".work > [role=alert]").wait_for()
    assert "out of order" in explorer.locator(".work > [role=alert]").inner_text()
    assert explorer.get_by_label("Layer", exact=True).input_value() == "5"
    assert explorer.locator(".slider output").first.inner_text().startswith("5 of") and table(explorer) == before
    explorer.get_by_label("Layer", exact=True).fill("2")
    until(explorer, "document.querySelector('.work > [role=alert]').hidden")
    assert table(explorer)[0]["layer"] == "2"


def test_an_upload_is_shown(explorer, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    explorer.set_input_files("input[type=file]", tmp_path / "mine.png")
    until(explorer, "document.querySelector('.thumbs button').title === 'mine.png'")
    until(explorer, DRAWN)
    until(explorer, "location.hash.includes(document.querySelector('.thumbs button').dataset.id)")
    assert {int(row["column"]) for row in table(explorer)} == set(range(6))


def test_an_address_with_an_upload_shows_it_again_or_says_that_it_is_gone(explorer, site, tmp_path, refusals):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    explorer.set_input_files("input[type=file]", tmp_path / "mine.png")
    until(explorer, "location.hash.includes('upload=1')")
    until(explorer, DRAWN)
    before = values(table(explorer))
    key = explorer.locator(".thumbs [aria-selected=true]").get_attribute("data-id")
    explorer.reload()
    until(explorer, DRAWN)
    assert explorer.locator(".thumbs [aria-selected=true]").get_attribute("title") == "mine.png"
    np.testing.assert_array_equal(values(table(explorer)), before)
    site.catalog.uploads._uploads._values.pop(key)  # as when newer ones need its room, or the server was started again
    refusals.append("status of 404")
    explorer.reload()
    said = explorer.locator(".work > [role=alert]")
    said.wait_for()
    assert "was opened from a file" in said.inner_text() and "no longer has this one" in said.inner_text()
    assert not explorer.locator(".thumbs [aria-selected=true], .words strong").count()
    explorer.locator(".thumbs button").first.click()
    until(explorer, DRAWN)
    assert not said.is_visible()
    until(explorer, "!location.hash.includes('upload')")


def test_an_address_of_an_unknown_picture_shows_no_other(window, site, refusals):
    refusals.append("status of 404")
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/attention?image=0123456789abcdef&run=gone")
    window.locator(".work > [role=alert]").wait_for()
    assert "is not known here" in window.locator(".work > [role=alert]").inner_text()
    assert window.locator(".thumbs button").count() and not window.locator(".words strong").count()


def test_an_address_finds_a_picture_on_its_page_of_the_run(window, site, tmp_path):
    for number in range(30):
        Image.new("RGB", (32, 32), (8 * number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"source": str(tmp_path)}}))
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "thirty", tmp_path)
    site.catalog.runs.append(run)
    image = site.catalog.images(run, 27, 1)[1][0]
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/attention?image={image.id}")
    until(window, DRAWN)
    assert window.locator(".thumbs [aria-selected=true]").get_attribute("title") == "27.png"
    assert window.locator(".pager .soft").inner_text() == "25 to 30 of 30"
    until(window, f"location.hash.includes('run={run.id}&start=24')")
    site.catalog.runs.remove(run)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_tablet(explorer, scheme):
    explorer.emulate_media(color_scheme=scheme)
    explorer.set_viewport_size(TABLET)
    explorer.wait_for_timeout(100)
    assert explorer.evaluate("document.documentElement.scrollWidth") <= TABLET["width"]
    choose_model(explorer, "random:vit_micro_patch8", side="Compare with")
    assert explorer.evaluate("document.documentElement.scrollWidth") <= TABLET["width"]


def test_paper_has_the_maps_and_no_controls(explorer):
    explorer.emulate_media(media="print")
    assert explorer.locator(".map").first.is_visible() and not explorer.locator(".tools").is_visible()
    assert not explorer.locator("#pages").is_visible()
    assert explorer.evaluate(BACKGROUND) in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )


def test_a_late_page_of_images_does_not_replace_the_newer_one(window, site, tmp_path):
    for number in range(30):
        Image.new("RGB", (8, 8), (8 * number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"source": str(tmp_path)}}))
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "thirty", tmp_path)
    site.catalog.runs.append(run)
    window.goto(f"{site.origin}/#/attention?run={run.id}")
    window.reload()
    window.wait_for_selector(".page-attention[data-ready]")
    second = Late(window, "**/api/images?*")
    window.get_by_label("Later images").click()
    window.get_by_label("Images of").select_option(run.id)  # back to the first page
    until(window, "!document.querySelector('[aria-label=\"Later images\"]').disabled")
    second.let_go()
    assert window.locator(".thumbs button").count() == 24
    assert window.locator(".pager .soft").inner_text() == "1 to 24 of 30"
    window.get_by_label("Later images").click()
    until(window, "document.querySelectorAll('.thumbs button').length === 6")
    site.catalog.runs.remove(run)


def test_questions_that_make_no_sense_are_answered_in_words(site):
    model = site.catalog.choices()[0].id
    run = next(run for run in site.catalog.runs if run.folder == site.run)
    image = site.catalog.images(run, 0, 1)[1][0].id
    path = f"/api/attention/rows?model={model}&image={image}"
    assert raw_request(site, f"{path}&layer=99&first=0")[0] == 400
    assert raw_request(site, f"{path}&layer=0&first=0&count=99999")[0] == 400
    assert raw_request(site, f"{path}&layer=x&first=0")[0] == 422
    assert raw_request(site, f"/api/attention/view?model=nothing&image={image}")[0] == 404
    assert raw_request(site, f"/api/attention/view?model={model}&image=nothing")[0] == 404
    status, _, body = raw_request(site, f"/api/attention/nifti?model={model}&image={image}&token=0")
    assert status == 400 and "of volumes only" in json.loads(body)["what"]
    status, _, body = raw_request(site, f"/api/attention/view?model={model}&image={image}&size=40&positions=false")
    assert status == 200 and json.loads(body)["grid"] == [5, 5]
