"""The shell of the page in a real browser: it opens, its pages are there, light and dark."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from web_requests import TABLET
from web_waiting import Held, until, waited_for


def test_the_page_opens_without_the_token_in_the_address(window, site):
    assert window.url.startswith(site.origin) and "token" not in window.url
    assert window.locator("#pages a[aria-current=page]").count() == 1


def test_every_page_opens(window):
    for name in window.eval_on_selector_all("#pages a", "links => links.map(link => link.dataset.page)"):
        window.locator(f"#pages a[data-page={name}]").click()
        window.wait_for_selector(f".page-{name}[data-ready]")
        assert window.locator("[role=alert]:visible").count() == 0


@pytest.mark.parametrize("name", ["attention", "volumes", "slides", "sentences", "map", "runs"])
def test_a_page_that_waits_has_its_heading_and_says_what_for(window, site, name):
    held = Held(window, "**/api/**")
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/{name}")
    assert waited_for(window).endswith(".")
    heading = window.locator("h1").inner_text()
    held.let_go()
    window.wait_for_selector(f".page-{name}[data-ready]", timeout=120_000)
    assert window.locator("h1").all_inner_texts() == [heading] and window.locator(".waiting").count() == 0


@pytest.mark.parametrize(
    ("name", "address"), [("attention", "**/api/attention/view?*"), ("sentences", "**/api/sentences")]
)
def test_the_first_answer_of_a_network_is_waited_for_in_words(window, site, name, address):
    held = Held(window, address)
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/{name}")
    until(
        window,
        "document.querySelector('.waiting')?.innerText.includes('Running the network') || "
        "document.querySelector('.waiting')?.innerText.includes('is reading the text')",
    )
    held.let_go()
    window.wait_for_selector(f".page-{name}[data-ready]", timeout=120_000)
    assert window.locator(".waiting").count() == 0


def test_no_page_is_wider_than_a_tablet(window):
    window.set_viewport_size(TABLET)
    for name in window.eval_on_selector_all("#pages a", "links => links.map(link => link.dataset.page)"):
        window.locator(f"#pages a[data-page={name}]").click()
        window.wait_for_selector(f".page-{name}[data-ready]")
        window.wait_for_timeout(100)
        wide = window.evaluate("document.documentElement.scrollWidth")
        assert wide <= TABLET["width"], f"{name} is {wide} px wide"


def test_dark_is_one_click_away(window):
    background = "getComputedStyle(document.body).backgroundColor"
    light = window.evaluate(background)
    window.locator("#theme").click()
    assert window.evaluate(background) != light


def test_what_is_neither_run_nor_model_is_refused(small_runs, tmp_path, monkeypatch):
    from saccade.errors import UsageError
    from saccade.web.start import catalog_of_names

    monkeypatch.chdir(tmp_path)
    for name in ("one", "two b"):
        shutil.copytree(small_runs[0], tmp_path / "runs" / name, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(
        UsageError, match=r"not a run\n  got: +runs, a folder.*\n  expected: a run .config.yaml"
    ) as refused:
        catalog_of_names(["runs"])
    assert refused.value.hint == "its runs: saccade view runs/one 'runs/two b'"
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("path,label\n")
    for name, said in (("empty", "an empty folder"), ("table.csv", "not a model"), ("nothing", "no such run")):
        with pytest.raises(UsageError, match=said):
            catalog_of_names([name])
    (tmp_path / "weights.pth").write_bytes(b"")
    named = ["runs/one", "runs/two b/model", "weights.pth", "weights.pth@vit_small_patch16", "random:resnet10_w16"]
    catalog = catalog_of_names(named)
    assert [run.name for run in catalog.runs] == ["one"] and list(catalog.models[:-1]) == named[1:]


def test_the_server_imports_no_torch():
    code = "import sys, saccade.web.server; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
