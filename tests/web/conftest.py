"""One server and one real Chromium for all tests of the page; each test gets a fresh window that is let in.

``site``  the page as `saccade view` serves it, over two small runs; ``window`` a Chromium page that has entered it.
A window fails its test when anything was written to the console as an error, or an answer was refused by our policy.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fake_run import write_fake_run
from web_requests import WIDE

if TYPE_CHECKING:
    from saccade.web.security import Keys


@dataclass(frozen=True)
class Site:
    """A served page: ``keys`` let a browser in; ``token`` is that of the cookie; ``catalog`` is what it shows."""

    keys: Keys
    origin: str
    token: str
    port: int
    catalog: object
    run: Path
    second: Path

    @property
    def url(self) -> str:
        """An address that lets in one browser."""
        return self.keys.new_url()


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory) -> tuple[Path, Path]:
    """A real run of a few steps on 32-pixel tiles with its model, and a complete one made of invented numbers."""
    from saccade.api import pretrain

    folder = tmp_path_factory.mktemp("runs")
    settings = {"model.size_px": 32, "train.batch": 8, "train.steps": 4, "train.log_every": 1, "dino.out_dim": 32}
    data = "synthetic:tissue?n=24&size=32"
    real = pretrain(data, out=folder / "short", backbone="vit_micro_patch8_w32", settings=settings)
    return real, write_fake_run(folder / "long")


@pytest.fixture(scope="session")
def site(small_runs) -> Iterator[Site]:
    pytest.importorskip("fastapi", reason='the page needs pip install "saccade[web]"')
    from saccade.web.catalog import build_catalog
    from saccade.web.security import Keys
    from saccade.web.server import create_app, listen, server

    catalog = build_catalog(list(small_runs), ["random:vit_micro_patch8", "random:resnet10_w16"])
    sock = listen("127.0.0.1", 0)
    keys = Keys("127.0.0.1", sock.getsockname()[1])
    running = server(create_app(catalog, keys))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield Site(keys, keys.origin, keys.session, keys.port, catalog, *small_runs)
    running.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium, the system's or playwright's own; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as play:
        try:
            found = play.chromium.launch(executable_path=system, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        except api.Error as error:
            pytest.skip(f"browser tests need Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def refusals() -> list[str]:
    """What a test adds to this list may be in errors of the console: Chromium writes every refused answer there."""
    return []


@pytest.fixture
def window(browser, site, refusals) -> Iterator[object]:
    """A window of 1280 x 800 that has been let in; errors in its console fail the test."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(site.url)
    page.wait_for_selector(".page[data-ready]")
    yield page
    context.close()
    wrong = [words for words in wrong if not any(one in words for one in refusals)]
    assert not wrong, wrong
