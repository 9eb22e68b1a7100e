"""A click in the explorer: saccade's page beside asking timm's ViT with its attention maps taken out by hooks.

    python benchmarks/explorer.py [--rounds 5] [--size 224] [--browser] [--json] [--smoke]

ViT-S/16. Ours: the page's own server, through HTTP on this machine: a new image (network, picture, first row), and
then other patches of it. Peer: what a click costs without anything kept, the whole network on its explicit path
with all maps of all layers. Milliseconds, medians, A B A B; and the processor time of a new image.
``--browser`` times a real Chromium besides: from the click until the map is painted and the browser is about to show
it, on a picture that was never looked at and on another patch.
The last line is one JSON object: ``ours`` and ``peer`` milliseconds of another patch, ``ratio``, and ``first``;
with ``--browser`` also ``painted_first`` and ``painted_another``, and the longest of each.
"""

from __future__ import annotations

import argparse
import http.client
import io
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import harness
from saccade.web.catalog import Catalog, build_catalog
from saccade.web.security import Keys
from saccade.web.server import create_app, listen, server

MODEL = "random:vit_small_patch16"
WIDTH, HEIGHT = 1280, 1200


class Page:
    """The page's server in a thread, asked as a browser asks."""

    def __init__(self, size_px: int, runs: tuple[Path, ...] = ()):
        self.size_px = size_px
        self.catalog: Catalog = build_catalog(runs, [MODEL])
        sock = listen("127.0.0.1", 0)
        self.keys = Keys("127.0.0.1", sock.getsockname()[1])
        self.running = server(create_app(self.catalog, self.keys))
        threading.Thread(target=self.running.run, kwargs={"sockets": [sock]}, daemon=True).start()
        while not self.running.started:
            time.sleep(0.01)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.keys.port)
        self.model = self.catalog.choices()[0].id

    def ask(self, path: str) -> bytes:
        headers = {"Cookie": f"{self.keys.cookie}={self.keys.session}", "Host": f"127.0.0.1:{self.keys.port}"}
        self.connection.request("GET", path, headers=headers)
        answer = self.connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body

    def add(self, pixels: np.ndarray) -> str:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return f"model={self.model}&image={self.catalog.uploads.add('noise.png', file.getvalue())}&size={self.size_px}"

    def first(self, query: str) -> None:
        """What the page asks before its first map is there."""
        for what in ("view?", "picture?", "rows?layer=11&first=0&"):
            self.ask(f"/api/attention/{what}{query}")

    def another(self, query: str, token: int) -> None:
        self.ask(f"/api/attention/rows?layer=11&first={token}&{query}")


class Hooked:
    """timm's ViT without its fused path; hooks keep every map, as extractors do."""

    def __init__(self, size_px: int):
        network: Any = timm.create_model("vit_small_patch16_224", img_size=size_px)
        self.network = network.eval()
        self.maps: list[torch.Tensor] = []
        for block in self.network.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, inputs, weights: self.maps.append(weights))

    @torch.inference_mode()
    def ask(self, pixels: torch.Tensor, token: int) -> torch.Tensor:
        self.maps.clear()
        self.network.forward_features(pixels)
        return self.maps[11][0, :, token]


# In the page: when a click came, and when both layers of the map had been painted and a frame was due.
WATCH = """() => {
  const context = document.querySelector('.panel .map').getContext('2d'), draw = context.drawImage;
  window.seen = {};
  document.addEventListener('click', (event) => { window.seen = { clicked: event.timeStamp, layers: 0 }; }, true);
  context.drawImage = function (...words) {
    draw.apply(this, words);
    const { seen } = window;
    seen.layers += 1;
    if (seen.layers === 2) requestAnimationFrame(() => { seen.shown = performance.now(); });
  };
}"""


def in_browser(rounds: int, size_px: int) -> dict[str, list[float]]:
    """Milliseconds from a click to the painted map: on new pictures, and on other patches of each."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {"painted_first": [], "painted_another": []}
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        run = Path(folder) / "run"
        (run / "images").mkdir(parents=True)
        for number in range(rounds + 1):
            noise = rng.integers(0, 255, (size_px, size_px, 3), dtype=np.uint8)
            Image.fromarray(noise).save(run / "images" / f"{number}.png")
        (run / "config.yaml").write_text(f"data:\n  source: {run / 'images'}\n")
        served = Page(size_px, (run,))
        system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        window = play.chromium.launch(executable_path=system, args=["--no-sandbox"]).new_page(
            viewport={"width": WIDTH, "height": HEIGHT}
        )
        window.goto(served.keys.new_url())
        window.wait_for_selector(".page[data-ready]")
        window.wait_for_timeout(3000)  # the first picture, which loads the network, and its whole layer
        window.evaluate(WATCH)

        def milliseconds_to_paint() -> float:
            ends = time.monotonic() + 60
            while not window.evaluate("window.seen.shown"):
                assert time.monotonic() < ends, "nothing was painted"
                window.wait_for_timeout(10)
            return float(window.evaluate("window.seen.shown - window.seen.clicked"))

        for number in range(1, rounds + 1):
            window.locator(".thumbs button").nth(number).click()
            times["painted_first"].append(milliseconds_to_paint())
            window.wait_for_timeout(1000)
            box = window.locator(".panel .map").first.bounding_box()
            assert box is not None
            for place_x, place_y in ((0.3, 0.4), (0.7, 0.2), (0.5, 0.8)):
                window.mouse.click(box["x"] + place_x * box["width"], box["y"] + place_y * box["height"])
                times["painted_another"].append(milliseconds_to_paint())
                window.wait_for_timeout(200)
        served.running.should_exit = True
    return times


def timed(call: Callable[..., object], *words: object) -> float:
    began = time.perf_counter()
    call(*words)
    return 1e3 * (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--browser", action="store_true", help="also from click to painted map in Chromium")
    options = harness.parse(parser, {"rounds": 1, "size": 64}, argv)
    others = 4 if options.smoke else 20
    page, peer = Page(options.size), Hooked(options.size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (options.rounds + 1, options.size, options.size, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {"first": [], "first_cpu": [], "ours": [], "peer": []}
    for index, pixels in enumerate(images):
        query, tensor = page.add(pixels), torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 127.5 - 1).float()
        cpu = time.process_time()
        first = timed(page.first, query)
        cpu = 1e3 * (time.process_time() - cpu)
        theirs = timed(peer.ask, tensor, 5)
        mine = statistics.median(timed(page.another, query, token) for token in range(others))
        if index:  # the first one loads the network
            for name, value in (("first", first), ("first_cpu", cpu), ("ours", mine), ("peer", theirs)):
                times[name].append(value)
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    result = {"ours": medians["ours"], "peer": medians["peer"], "ratio": round(medians["peer"] / medians["ours"], 1)}
    result |= {"first": medians["first"], "first_cpu": medians["first_cpu"]}
    if options.browser:
        for name, values in in_browser(options.rounds, options.size).items():
            result |= {name: round(statistics.median(values), 1), f"{name}_longest": round(max(values), 1)}
    lines = [
        f"new image {result['first']:.0f} ms ({result['first_cpu']:.0f} ms of processor)",
        f"another patch {result['ours']:.1f} ms, {result['peer']:.0f} ms with timm and hooks",
    ]
    if options.browser:
        lines.append(
            f"click to painted map: new image {result['painted_first']:.0f} ms (at most "
            f"{result['painted_first_longest']:.0f}), another patch {result['painted_another']:.0f} ms"
        )
    page.running.should_exit = True
    harness.finish(options, result, lines)


if __name__ == "__main__":
    main()
