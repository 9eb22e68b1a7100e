"""Safe by default: who is let in, what is found, what is shown and never run."""

from __future__ import annotations

import io
import itertools
import json
import threading
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from saccade.cli.view import view
from saccade.web import start
from saccade.web.catalog import CatalogRun, build_catalog, opaque, read_upload
from saccade.web.discover import runs_below
from saccade.web.security import BODY_BYTES, UPLOAD_BYTES, Keys
from web_requests import raw_request
from web_waiting import until

RUN = "window.hacked=1"
HOSTILE = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<body onload={RUN}>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'>",
    f'"><script>{RUN}</script>',
    f"'><img src=x onerror={RUN}>",
    f"' onmouseover='{RUN}",
    f'" onfocus="{RUN}" autofocus="',
    f"javascript:{RUN}",
    f"JaVaScRiPt:{RUN}//",
    f"data:text/html,<script>{RUN}</script>",
    f"<a href='javascript:{RUN}'>x</a>",
    f"<details open ontoggle={RUN}>",
    f"<video><source onerror={RUN}>",
    f"<math><mtext><script>{RUN}</script>",
    f"<style>@import 'javascript:{RUN}'</style>",
    f"<link rel=stylesheet href=javascript:{RUN}>",
    f"<meta http-equiv=refresh content='0;javascript:{RUN}'>",
    f"<object data=javascript:{RUN}>",
    f"<embed src=javascript:{RUN}>",
    f"<form action=javascript:{RUN}><input type=submit>",
    f"<base href='javascript:{RUN}//'>",
    "${" + RUN + "}",
    "{{constructor.constructor('" + RUN + "')()}}",
    f"`;{RUN};`",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"&lt;script&gt;{RUN}&lt;/script&gt; \u202egnp.exe",
)
UPS = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f", "..;/", "%c0%ae%c0%ae/", "..%00/")
STARTS = ("/", "/static/", "/api/runs/", "/api/images/", "/api/attention/")
TARGETS = ("etc/passwd", "server.py", "config.yaml", "pyproject.toml")


def test_the_strings_and_the_spellings_are_as_many_as_promised():
    assert len(set(HOSTILE)) == 30
    assert len(set(itertools.product(STARTS, UPS, TARGETS))) == 200


def test_only_the_token_lets_in(site):
    path = "/api/runs"
    assert raw_request(site, path)[0] == 200
    assert raw_request(site, path, headers={"Cookie": ""})[0] == 403
    assert raw_request(site, path, headers={"Cookie": f"saccade-{site.port}=x"})[0] == 403
    assert raw_request(site, "/static/main.js", headers={"Cookie": ""})[0] == 403
    assert raw_request(site, "/?token=wrong", headers={"Cookie": "", "Origin": ""})[0] == 403
    entry = site.url.removeprefix(site.origin)
    status, headers, _ = raw_request(site, entry, headers={"Cookie": "", "Origin": ""})
    assert status == 200 and "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert entry.removeprefix("/?token=") not in headers["set-cookie"]


def test_a_token_is_valid_once(site):
    entry = site.url.removeprefix(site.origin)
    refused = raw_request(site, entry, headers={"Cookie": "", "Origin": "http://evil.example"})
    assert refused[0] == 403  # and the token is not used up by others
    assert raw_request(site, entry, headers={"Cookie": "", "Origin": ""})[0] == 200
    status, headers, text = raw_request(site, entry, headers={"Cookie": "", "Origin": ""})
    assert status == 403 and "set-cookie" not in headers and b"last address that saccade view printed" in text
    assert raw_request(site, entry)[0] == 200  # a reload: the cookie is there
    assert raw_request(site, f"/?token={site.token}", headers={"Cookie": ""})[0] == 403  # the cookie is no token


def test_the_next_address_is_announced_when_the_last_is_used():
    lines = []
    keys = Keys("127.0.0.1", 8420, announce=lines.append)
    printed, opened = (keys.new_url().partition("=")[2] for _ in range(2))
    keys.use(opened)
    assert not lines and keys.valid(printed) and not keys.valid(opened)
    keys.use(printed)
    assert len(lines) == 1 and keys.valid(lines[0].partition("=")[2]) and not keys.valid(printed)
    assert printed not in repr(keys) and keys.session not in repr(keys)


def test_the_browser_gets_a_file_without_the_token_in_its_name(monkeypatch, capsys):
    opened, contents = threading.Event(), []

    def browser(url: str) -> None:
        path = Path(url2pathname(urlsplit(url).path))
        contents.extend([url, path.stat().st_mode & 0o777, path.read_text("utf-8")])
        opened.set()

    monkeypatch.setattr(start.webbrowser, "open", browser)
    monkeypatch.setattr(start, "serve", lambda app, sock: opened.wait(20) and sock.close())
    view(["random:vit_micro_patch8"], host="127.0.0.1", port=None, no_open=False)
    url, mode, text = contents
    assert url.startswith("file:///") and "token" not in url and mode == 0o600
    token = text.partition("?token=")[2].partition('"')[0]
    assert len(token) > 20 and token not in url and token not in capsys.readouterr().out
    assert not Path(url2pathname(urlsplit(url).path)).exists()


def test_another_port_gets_the_remedy(site):
    status, _, text = raw_request(site, "/", headers={"Host": "127.0.0.1:1"})
    assert status == 421 and f"ssh -L {site.port}:127.0.0.1:{site.port}".encode() in text and b"names port 1." in text
    status, _, text = raw_request(site, "/", headers={"Host": "evil.example:1"})
    assert status == 421 and b"ssh" not in text


def test_a_browser_gets_in_by_the_file_and_stays(browser, site):
    """From a file to the page; a reload and a second tab work with the cookie."""
    context = browser.new_context()
    with start.redirect_file(site.url) as path:
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_url(f"{site.origin}/**")
        page.wait_for_selector("[data-ready]")
    assert page.reload().status == 200
    page.wait_for_selector("[data-ready]")
    assert context.new_page().goto(site.origin).status == 200
    context.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:{port}"}, 421),  # a name that was made to point here: DNS rebinding
        ({"Host": "127.0.0.1:1"}, 421),  # a tunnel with another port
        ({"Host": "localhost:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_other_sites_are_refused(site, headers, status):
    asked = {key: value.format(port=site.port) for key, value in headers.items()}
    assert raw_request(site, "/api/runs", headers=asked)[0] == status


def test_writing_needs_an_origin(site):
    assert raw_request(site, "/api/uploads", method="POST", headers={"Origin": ""}, body=b"x")[0] == 403


def test_every_answer_has_the_policy(site):
    for path in ("/", "/static/main.js", "/api/runs", "/api/nothing"):
        headers = raw_request(site, path)[1]
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "server" not in raw_request(site, "/")[1]


def test_two_hundred_ways_out_lead_nowhere(site):
    found = {}
    for start_, up, target in itertools.product(STARTS, UPS, TARGETS):
        path = f"{start_}{up * 4}{target}"
        found[path] = raw_request(site, path)[0]
    assert {path: status for path, status in found.items() if status != 404} == {}


def picture(size=(8, 8)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_uploads_are_bounded_and_stay_in_memory(site, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    too_long = {"Content-Length": str(UPLOAD_BYTES + 1)}
    status, _, said = raw_request(site, "/api/uploads", method="POST", headers=too_long, body=b"x")
    assert status == 413 and "too large: at most" in json.loads(said)["what"]
    assert (
        raw_request(site, "/api/runs", method="POST", headers={"Content-Length": str(BODY_BYTES + 1)}, body=b"x")[0]
        == 413
    )
    monkeypatch.setattr("saccade.web.images.UPLOAD_PIXELS", 100)
    status, _, said = raw_request(site, "/api/uploads", method="POST", body=picture((11, 10)))
    assert status == 400 and "too many pixels" in json.loads(said)["what"]
    assert raw_request(site, "/api/uploads", method="POST", body=b"<html>")[0] == 400
    status, _, said = raw_request(
        site, "/api/uploads", method="POST", headers={"X-Name": quote(HOSTILE[0])}, body=picture()
    )
    assert status == 200 and json.loads(said)["name"] == HOSTILE[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_channels_of_an_upload_count(site, monkeypatch, planar):
    """Many channels pack into a small file; Pillow sees one of them, or none."""
    file, shape = io.BytesIO(), (24, 40, 40) if planar == "separate" else (40, 40, 24)
    tifffile.imwrite(file, np.zeros(shape, np.uint8), photometric="minisblack", planarconfig=planar, compression="zlib")
    assert raw_request(site, "/api/uploads", method="POST", body=file.getvalue())[0] == 200
    monkeypatch.setattr("saccade.web.images.UPLOAD_PIXELS", 1600)  # as many as it has, and a fourth of its numbers
    status, _, said = raw_request(site, "/api/uploads", method="POST", body=file.getvalue())
    assert status == 400 and "too many channels" in json.loads(said)["what"]


def test_others_are_answered_while_an_upload_is_decoded(site, monkeypatch):
    begun, others, heard = threading.Event(), threading.Event(), []

    def slow(data: bytes, name: str):
        begun.set()
        heard.append(others.wait(20))
        return read_upload(data, name)

    monkeypatch.setattr("saccade.web.images.read_upload", slow)
    sent = threading.Thread(target=lambda: raw_request(site, "/api/uploads", method="POST", body=picture()))
    sent.start()
    assert begun.wait(20) and raw_request(site, "/api/runs")[0] == 200
    others.set()
    sent.join()
    assert heard == [True]


def test_a_body_without_a_length_is_bounded_too(site, monkeypatch):
    monkeypatch.setattr("saccade.web.security.UPLOAD_BYTES", 1000)
    pieces = (b"x" * 400 for _ in range(5))
    assert (
        raw_request(site, "/api/uploads", method="POST", body=pieces, headers={"Transfer-Encoding": "chunked"})[0]
        == 413
    )


def test_a_report_cannot_do_anything(site):
    run = next(run for run in site.catalog.runs if run.folder == site.run)
    status, headers, _ = raw_request(site, f"/api/runs/{run.id}/report")
    assert status == 200 and headers["content-security-policy"].startswith("sandbox;")
    assert "script-src" not in headers["content-security-policy"]


def test_ids_say_nothing_and_hold_for_one_session(tmp_path):
    assert opaque(b"a", "run", "/home/x") != opaque(b"b", "run", "/home/x")
    assert opaque(b"a", "run", "/home/x") != opaque(b"a", "image", "/home/x")
    for name in ("one/run", "two/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("data: {}")
    names = [run.name for run in build_catalog(runs_below(tmp_path)).runs]
    assert sorted(names) == ["one/run", "two/run"]


@pytest.fixture
def hostile_run(site, tmp_path):
    """A run with a hostile name whose images and classes have hostile names."""
    folder = tmp_path / HOSTILE[2].replace("/", "_")
    (folder / "images").mkdir(parents=True)
    rows = ["path,label"]
    for index, text in enumerate(HOSTILE):
        name = text.replace("/", "_").replace("\\", "_")[:100] + ".png"
        (folder / "images" / name).write_bytes(picture())
        quoted = text.replace('"', '""')
        rows.append('"{}","{}"'.format(name.replace('"', '""'), f"{index} {quoted}"))
    (folder / "images" / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"source": str(folder / "images")}}))
    run = CatalogRun(site.catalog.id_of("run", str(folder)), folder.name, folder)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


def test_hostile_names_are_shown_and_not_run(window, site, hostile_run):
    window.on("dialog", lambda dialog: pytest.fail(dialog.message))
    window.goto(f"{site.origin}/#/runs?runs={hostile_run.id}")
    window.reload()
    window.wait_for_selector(".page-runs[data-ready]")
    assert hostile_run.name in window.locator(".runs-list").inner_text()
    window.goto(f"{site.origin}/#/attention?run={hostile_run.id}")
    window.reload()
    window.wait_for_selector(".page-attention[data-ready]")
    window.get_by_label("Images of").select_option(hostile_run.id)
    until(window, "document.querySelectorAll('.thumbs button[title*=hacked]').length === 24")
    titles = window.eval_on_selector_all(".thumbs button", "nodes => nodes.map(node => node.title)")
    window.get_by_label("Later images").click()
    until(window, "document.querySelectorAll('.thumbs button').length === 6")
    titles += window.eval_on_selector_all(".thumbs button", "nodes => nodes.map(node => node.title)")
    for index, text in enumerate(HOSTILE):
        assert any(title.endswith(f", {index} {text}") for title in titles), text
    for button in window.locator(".thumbs button").all():
        button.hover()
    window.wait_for_timeout(100)
    assert window.evaluate("window.hacked") is None
    assert window.locator("script").count() == 1 and window.locator("iframe, object, embed, base").count() == 0


def test_another_address_is_named_with_its_meaning(monkeypatch, capsys):
    served = []
    monkeypatch.setattr(start, "serve", lambda app, sock: served.append(sock.getsockname()) or sock.close())
    view(["random:vit_micro_patch8"], host="0.0.0.0", port=None, no_open=True)
    said = capsys.readouterr().out
    assert "This page is reachable by others" in said and "not encrypted" in said and "ssh -L" in said
    view(["random:vit_micro_patch8"], host="127.0.0.1", port=None, no_open=True)
    quiet = capsys.readouterr().out.strip()
    assert quiet.startswith("http://127.0.0.1:") and "reachable" not in quiet
    assert [address[0] for address in served] == ["0.0.0.0", "127.0.0.1"]


def test_a_name_that_others_choose_is_never_ours():
    open_to_all, local = Keys("0.0.0.0", 8420), Keys("127.0.0.1", 8420)
    assert open_to_all.ours("192.168.1.5:8420") and not open_to_all.ours("evil.example:8420")
    assert local.ours("[::1]:8420") and not local.ours("192.168.1.5:8420") and not local.ours("127.0.0.1")
    assert Keys("127.0.0.1", 80).ours("127.0.0.1")
