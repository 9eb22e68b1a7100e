"""Names that are not UTF-8, as old cameras and archives leave them: everything is listed, such names spelt out."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from saccade.web.catalog import build_catalog
from saccade.web.discover import encodable
from web_requests import ask

UMLAUT = b"M\xfcller"


def picture(path: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 40, 120)).save(file, "PNG")
    Path(os.fsdecode(path)).write_bytes(file.getvalue())


@pytest.fixture
def umlauts(site, tmp_path):
    """A run in a folder of such a name on the catalog, which learned from files and classes of such names."""
    base = os.fsencode(tmp_path)
    try:
        for label in (b"cat" + UMLAUT, b"dog"):
            Path(os.fsdecode(base + b"/data" + UMLAUT + b"/" + label)).mkdir(parents=True)
            for name in (UMLAUT, b"a", b"b"):
                picture(base + b"/data" + UMLAUT + b"/" + label + b"/" + name + b".png")
    except OSError:
        pytest.skip("this file system takes no such names")
    run = Path(os.fsdecode(base + b"/run" + UMLAUT))
    shutil.copytree(site.run, run, ignore=shutil.ignore_patterns("features*"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = str(tmp_path / os.fsdecode(b"data" + UMLAUT))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    laid = build_catalog([run]).runs[0]
    site.catalog.runs.append(laid)
    yield laid
    site.catalog.runs.remove(laid)


def test_every_list_holds_such_names(site, umlauts):
    def asked(path: str):
        status, text = ask(site, f"/api/{path}")
        assert status == 200, (path, status, text)
        return json.loads(text)

    images = asked(f"images?run={umlauts.id}")
    names = {one["name"] for one in images["images"]}
    assert images["total"] == 6 and {"dog/a.png", "dog/M\\udcfcller.png"} <= names
    assert {one["label"] for one in images["images"]} == {"catM\\udcfcller", "dog"}
    for one in images["images"]:
        assert asked(f"images/{one['id']}")["name"] == one["name"]
    run = next(one for one in asked("runs") if one["id"] == umlauts.id)
    assert run["name"] == "runM\\udcfcller" and run["data"] == "dataM\\udcfcller"
    assert asked(f"runs/{umlauts.id}")["settings"]["data.source"] == "dataM\\udcfcller"
    models = asked("attention/models")
    assert any(one["name"] == "runM\\udcfcller" and one["run"] == umlauts.id for one in models)
    model = next(one for one in models if one["name"] == "short")
    assert asked(f"attention/view?model={model['id']}&image={images['images'][0]['id']}")["grid"]
    assert any(one["name"] == "runM\\udcfcller" for one in asked("map"))
    asked("slides")


def test_a_damaged_file_of_such_a_name_is_named(site, umlauts):
    image = next(
        one for one in json.loads(ask(site, f"/api/images?run={umlauts.id}")[1])["images"] if "/M\\u" in one["name"]
    )
    record = site.catalog.image(image["id"]).record
    source = yaml.safe_load((umlauts.folder / "config.yaml").read_text())["data"]["source"]
    (Path(source) / record.id).write_bytes(b"no image")
    status, text = ask(site, f"/api/images/{image['id']}/small")
    assert status == 400 and "M\\udcfcller.png" in json.loads(text)["what"]


def test_only_what_cannot_be_sent_is_spelt_out():
    assert encodable({"a\udcfc": ["é\udcff", ("b", 1, None)]}) == {"a\\udcfc": ["é\\udcff", ["b", 1, None]]}
