"""Many requests at once: lists and static files are answered at once, tiles and attention wait in a bounded queue."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason='the page needs pip install "saccade[web]"')

from made_slides import texture, write_slide
from saccade.api import pretrain
from saccade.web.work_queue import WorkQueue, is_heavy

REQUESTS, HEALTHY = 300, 40


@pytest.mark.parametrize(
    ("path", "heavy"),
    [
        ("/", False),
        ("/static/app.js", False),
        ("/api/runs", False),
        ("/api/runs/a/report", False),
        ("/api/live", False),
        ("/api/attention/models", False),
        ("/api/slides", False),
        ("/api/map/a/job", False),
        ("/api/map/embed/a/stop", False),
        ("/api/slides/a/zoom/1/2/3", True),
        ("/api/slides/a/tile", True),
        ("/api/attention/view", True),
        ("/api/attention/rollout", True),
        ("/api/images/a", True),
        ("/api/map/a/thumb/3", True),
        ("/api/map/a/neighbours", True),
        ("/api/sentences", True),
        ("/api/uploads", True),
    ],
)
def test_what_waits_in_the_queue(path, heavy):
    assert is_heavy(path) is heavy


def run(coroutine) -> None:
    """In a thread of its own: the browser of other tests leaves a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


class Page:
    """An application that notes how many heavy requests it answers at once."""

    def __init__(self, hold: asyncio.Event | None = None):
        self.now = self.peak = self.answered = 0
        self.hold = hold

    async def __call__(self, scope, receive, send):
        if is_heavy(scope["path"]):
            self.now += 1
            self.peak = max(self.peak, self.now)
            await (asyncio.sleep(0.005) if self.hold is None else self.hold.wait())
            self.now -= 1
            self.answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def request(app, path, *, leave: asyncio.Event | None = None, method: str = "GET") -> int | None:
    """The status of the answer; None for a browser that has gone."""
    statuses, first = [], [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if first:
            return first.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "path": path, "method": method, "headers": []}
    await app(scope, receive, send)
    return statuses[0] if statuses else None


def test_light_requests_do_not_wait_and_the_queue_is_bounded():
    async def many():
        page = Page()
        queue = WorkQueue(page, at_once=2, most=50)
        heavy = [asyncio.ensure_future(request(queue, "/api/slides/a/tile")) for _ in range(60)]
        heavy += [asyncio.ensure_future(request(queue, "/api/uploads", method="POST")) for _ in range(10)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(request(queue, "/api/runs"), 1) == 200 and page.answered < 50
        statuses = await asyncio.gather(*heavy)
        assert page.peak == 2 and statuses.count(503) == 70 - statuses.count(200) > 0 and page.answered >= 50
        assert await request(queue, "/api/uploads", method="POST") == 200  # every place is free again

    run(many())


def test_requests_of_a_browser_that_has_gone_are_not_answered():
    async def leaving():
        hold, leave = asyncio.Event(), asyncio.Event()
        page = Page(hold)
        queue = WorkQueue(page, at_once=1)
        kept = asyncio.ensure_future(request(queue, "/api/slides/a/tile"))
        while not page.now:
            await asyncio.sleep(0)
        left = [asyncio.ensure_future(request(queue, "/api/slides/a/tile", leave=leave)) for _ in range(5)]
        while queue.waiting < 5:
            await asyncio.sleep(0)
        leave.set()
        assert await asyncio.gather(*left) == [None] * 5 and not kept.done() and queue.waiting == 0
        hold.set()
        assert await kept == 200 and page.answered == 1
        assert await request(queue, "/api/slides/a/tile") == 200

    run(leaving())


# --- the real page --------------------------------------------------------------------------------

SERVE = """
import sys
from pathlib import Path
from saccade.web.catalog import build_catalog
from saccade.web.security import Keys
from saccade.web.server import create_app, listen, server
catalog = build_catalog([Path(sys.argv[1])], ["random:vit_micro_patch8"])
sock = listen("127.0.0.1", 0)
keys = Keys("127.0.0.1", sock.getsockname()[1])
print(keys.port, keys.session, flush=True)
server(create_app(catalog, keys)).run(sockets=[sock])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A served page over a run on tiles of a slide: port, cookie and process."""
    folder = tmp_path_factory.mktemp("requests")
    (folder / "data").mkdir()
    write_slide(folder / "data" / "slide.tif", texture(2048, 2048))
    settings = {"model.size_px": 32, "train.batch": 8, "train.steps": 2, "dino.out_dim": 32, "data.slide_mpp": 0.5}
    settings |= {"data.tile_px": 64, "data.limit": 64}
    pretrain(folder / "data", out=folder / "run", backbone="vit_micro_patch8_w32", settings=settings)
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder / "run")], stdout=subprocess.PIPE, text=True)
    port, session = process.stdout.readline().split()
    yield int(port), session, process
    process.terminate()
    process.wait(timeout=10)


def get(server, path: str) -> tuple[int, bytes, float]:
    """Status, body and seconds."""
    port, session, _ = server
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", path, headers={"cookie": f"saccade-{port}={session}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, time.perf_counter() - began


def peak_rss(process: subprocess.Popen) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_healthy_requests_beside_300_for_tiles_and_attention(server):
    slide = json.loads(get(server, "/api/slides")[1])["slides"][0]["id"]
    models = [model["id"] for model in json.loads(get(server, "/api/attention/models")[1])]
    run_id = json.loads(get(server, "/api/runs")[1])[0]["id"]
    image = json.loads(get(server, f"/api/images?run={run_id}")[1])["images"][0]["id"]
    heavy = [f"/api/slides/{slide}/zoom/11/{n % 8}/{n // 8 % 8}" for n in range(REQUESTS // 2)]
    sizes = [32 * (1 + n % 8) for n in range(REQUESTS // 2)]
    heavy += [
        f"/api/attention/view?model={models[n % len(models)]}&image={image}&size={s}" for n, s in enumerate(sizes)
    ]
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda path=path: statuses.append(get(server, path)[0])) for path in heavy]
    for thread in threads:
        thread.start()
    seconds = []
    for n in range(HEALTHY):
        status, _, took = get(server, ("/static/index.html", "/api/runs", "/api/attention/models", "/")[n % 4])
        assert status == 200
        seconds.append(took)
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    print(f"p95 {np.percentile(seconds, 95):.2f} s, RSS {peak_rss(server[2]) / 2**20:.0f} MiB, {set(statuses)}")
    assert statuses == [200] * REQUESTS
    assert np.percentile(seconds, 95) < 1 and peak_rss(server[2]) < 2**30
