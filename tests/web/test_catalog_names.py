"""Names in the choosers: no two alike, as short as tells them apart, and never a whole path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from saccade.web.catalog import build_catalog
from saccade.web.discover import numbered, short_names
from web_waiting import until


@pytest.fixture
def twins(site, tmp_path):
    """Two hierarchies of one name on the catalog, known by the heads that were trained on them."""
    heads = []
    for place in ("first", "second"):
        hipt = tmp_path / place / "work" / "hipt"
        shutil.copytree(site.run, hipt / "tile")
        wanted = {"data": "slides", "method": "dino", "recipe": "", "hipt": {"slide": "none"}, "levels": {}}
        (hipt / "hierarchy.yaml").write_text(yaml.safe_dump(wanted))
        heads.append(tmp_path / f"heads of the {place}")
        (heads[-1] / "head").mkdir(parents=True)
        (heads[-1] / "head" / "head.json").write_text(json.dumps({"hierarchy": str(hipt)}))
    laid, was = build_catalog(heads), (site.catalog.runs, site.catalog.hierarchies)
    site.catalog.runs, site.catalog.hierarchies = [*site.catalog.runs, *laid.runs], laid.hierarchies
    yield tmp_path
    site.catalog.runs, site.catalog.hierarchies = was


def test_levels_of_two_hierarchies_of_one_name_are_told_apart(window, site, twins):
    window.goto("about:blank")
    window.goto(f"{site.origin}/#/attention")
    until(window, "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')")
    chooser = window.get_by_label("Model", exact=True)
    names = chooser.locator("option").all_inner_texts()
    assert {"first/…/hipt/tile", "second/…/hipt/tile"} < set(names) and len(set(names)) == len(names)
    assert str(twins) not in window.content() and not [name for name in names if name.startswith("/")]
    chooser.select_option(label="second/…/hipt/tile")
    until(window, "document.querySelector('.panel figcaption').innerText.startsWith('second/…/hipt/tile')")
    window.goto(f"{site.origin}/#/runs")
    window.wait_for_selector(".runs-list")
    assert len(set(window.locator(".runs-list strong").all_inner_texts())) >= 4


def test_short_names_are_those_of_the_nearest_folder_that_differs():
    def names(*places: str) -> list[str]:
        return short_names([Path(place) for place in places])

    assert names("/x/a/hipt", "/x/b/hipt", "/x/c") == ["a/hipt", "b/hipt", "c"]
    assert names("/x/a/work/hipt", "/x/b/work/hipt") == ["a/…/hipt", "b/…/hipt"]
    assert names("/a/1/hipt", "/a/2/hipt", "/b/1/hipt") == ["hipt (1)", "hipt (2)", "hipt (3)"]
    assert names("/hipt", "/x/hipt") == ["hipt (1)", "hipt (2)"]
    assert names("/x/hipt", "/x/hipt") == ["hipt", "hipt"] and names() == []
    assert numbered(["a", "b", "a"], [1, 2, 3]) == ["a (1)", "b", "a (2)"]


def test_weights_files_of_one_name_are_told_apart(tmp_path):
    files = [tmp_path / place / "vit.safetensors" for place in ("one", "two")]
    shown = [one.name for one in build_catalog([], [*map(str, files), "random:vit_micro_patch8"]).choices()]
    assert shown == ["one/vit.safetensors", "two/vit.safetensors", "random:vit_micro_patch8"]
