"""A run whose folder is deleted while the page is open: it is called so, and all others are shown as before."""

from __future__ import annotations

import json
import shutil

import pytest

from saccade.web.catalog import CatalogRun
from saccade.web.runs import RunFollower
from web_requests import ask
from web_waiting import until


@pytest.fixture
def gone(site):
    """A run that lies first on the catalog and whose folder has been deleted."""
    folder = site.second.with_name("deleted")
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "deleted", folder)
    site.catalog.runs.insert(0, run)
    yield run
    site.catalog.runs.remove(run)


def test_all_questions_are_answered_and_name_no_folder(site, gone):
    for path in ("runs", "attention/models", "slides", "map"):
        status, text = ask(site, f"/api/{path}")
        assert status == 200 and str(gone.folder) not in text, (path, text)
    assert [one["name"] for one in json.loads(ask(site, "/api/runs")[1]) if one.get("gone")] == ["deleted"]
    for path in (f"runs/{gone.id}", f"images?run={gone.id}"):
        status, text = ask(site, f"/api/{path}")
        assert status == 400 and "the run deleted no longer exists" in text and str(gone.folder.parent) not in text


def test_the_pages_show_the_other_runs(window, site, gone, refusals):
    refusals.append("400")
    window.goto(f"{site.origin}/#/runs?runs={gone.id},{site.catalog.runs[1].id}")
    window.reload()
    window.wait_for_selector(".page-runs[data-ready] .chart")
    assert "No longer there" in window.locator(".card", has_text="deleted").inner_text()
    assert window.locator("[role=alert]:visible").count() == 0
    window.goto(f"{site.origin}/#/map")
    window.get_by_text("is no longer there: its folder").wait_for()
    window.goto(f"{site.origin}/#/attention")
    until(window, "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')")
    assert "deleted" not in window.get_by_label("Images of").locator("option").all_inner_texts()


def test_a_run_that_goes_while_it_is_followed_has_a_card_that_says_so(site, tmp_path):
    shutil.copytree(site.second, tmp_path / "going")
    followed = RunFollower(CatalogRun("id", "going", tmp_path / "going"))
    assert followed.lines()["lines"] and followed.card()["title"]
    shutil.move(tmp_path / "going", tmp_path / "away")
    assert followed.lines() is None and followed.card() == {"id": "id", "name": "going", "axes": 0, "gone": True}
    assert followed.card() is None
    shutil.move(tmp_path / "away", tmp_path / "going")
    assert followed.card()["title"]
