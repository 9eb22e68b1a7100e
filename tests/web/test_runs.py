"""The page of runs: figures that grow while it is open, the doctor's words, tables with their intervals."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from saccade.web.catalog import CatalogRun
from saccade.web.live import Tail
from saccade.web.runs import flat
from web_waiting import Late, until


def show(page, site, *folders) -> None:
    ids = [run.id for folder in folders for run in site.catalog.runs if run.folder == folder]
    page.goto(f"{site.origin}/#/runs?runs={','.join(ids)}")
    page.reload()
    page.wait_for_selector(".page-runs[data-ready]")
    page.wait_for_selector(".chart")


def test_curves_of_two_runs_lie_in_one_chart(window, site):
    show(window, site, site.run, site.second)
    until(window, "document.querySelector('.chart').querySelectorAll('path.series').length === 2")
    assert window.locator(".key li").all_inner_texts() == ["short", "long"]
    dashes = window.eval_on_selector_all(
        ".chart:first-child path", "paths => paths.map(p => p.getAttribute('stroke-dasharray'))"
    )
    assert len(set(dashes)) == 2  # told apart without colour


def test_the_table_has_the_runs_numbers_and_intervals(window, site):
    show(window, site, site.second)
    window.wait_for_selector("table")
    rows = json.loads((site.second / "evaluation.json").read_text())["rows"]
    row = next(r for r in rows if r["probe"] == "logistic" and r["fraction"] == 0.1 and r["metric"] == "accuracy")
    text = window.locator("table").first.inner_text()
    assert f"{100 * row['mean']:.1f} {100 * row['low']:.1f} to {100 * row['high']:.1f}" in text.replace("\xa0", " ")
    assert row["model"] in text


@pytest.fixture
def copied(site):
    """A copy of the long run on the catalog, to be changed; removed afterwards."""
    folder = site.second.with_name("copied")
    shutil.copytree(site.second, folder)
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "copied", folder)
    site.catalog.runs.append(run)
    yield folder
    site.catalog.runs.remove(run)
    shutil.rmtree(folder)


def test_one_group_has_no_interval(window, site, copied):
    found = json.loads((copied / "evaluation.json").read_text())
    found["protocol"]["units_test"] = 1
    for row in [*found["rows"], *found["differences"]]:
        row["low"] = row["high"] = row.get("mean", row.get("difference"))
    (copied / "evaluation.json").write_text(json.dumps(found))
    show(window, site, copied)
    window.wait_for_selector("table")
    cells = window.locator("td.number small").all_inner_texts()
    assert cells and {cell.strip() for cell in cells} == {"one group: no interval"}
    (copied / "evaluation.json").unlink()
    rows = [{"metric": "accuracy", "mean": 0.469, "low": 0.469, "high": 0.469}]
    about = {"rows": rows, "n_test": 32, "units_test": 1, "majority": 0.5, "classes": ["a", "b"], "confusion": []}
    (copied / "classifier.json").write_text(json.dumps(about))
    show(window, site, copied)
    said = window.locator(".card", has_text="copied").inner_text().replace("\xa0", " ")
    assert "46.9 % of 32 test images correctly (no interval: one group)" in said


def test_a_k_nn_that_could_never_be_right_is_no_curve(window, site, copied):
    show(window, site, copied)
    titles = "[...document.querySelectorAll('.chart')].map(one => one.textContent).join()"
    until(window, f"{titles}.includes('k-NN accuracy')")
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()[:-1]]
    lines = [line | ({"knn": 0.0} if "knn" in line else {}) for line in lines]
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    show(window, site, copied)
    until(window, f"{titles}.includes('Effective rank')")
    assert "k-NN accuracy" not in window.evaluate(titles)


def test_other_data_that_it_was_measured_on_are_named(window, site, copied):
    show(window, site, copied)
    window.wait_for_selector("table")
    assert "Measured on" not in window.locator("main").inner_text()  # an older file does not know
    found = json.loads((copied / "evaluation.json").read_text())
    source = yaml.safe_load((copied / "config.yaml").read_text())["data"]["source"]
    for data, shown in ((source, None), ("/elsewhere/six", "six"), (f"/elsewhere{source}", None)):
        found["protocol"]["data"] = data
        (copied / "evaluation.json").write_text(json.dumps(found))
        show(window, site, copied)
        window.wait_for_selector("table")
        card = window.locator(".card", has_text="copied").inner_text()
        assert ("Measured on" in card) == (data != source)
        if shown:
            assert f"Measured on {shown}, not on the training data." in card
            assert f"Measured on {shown}; it learned from" in window.locator("main").inner_text()


def test_a_late_run_does_not_come_back_after_it_was_put_away(window, site):
    show(window, site, site.run)
    window.wait_for_selector(".page-runs table, .page-runs code")
    before = window.locator("h2").all_inner_texts()
    second = next(run for run in site.catalog.runs if run.folder == site.second)
    late = Late(window, f"**/api/runs/{second.id}")
    window.get_by_label("Show long").check()
    until(window, "document.querySelectorAll('.key li').length === 2")
    window.get_by_label("Show long").uncheck()
    until(window, "document.querySelectorAll('.key li').length === 1")
    late.let_go()
    assert window.locator("h2").all_inner_texts() == before


def test_settings_that_differ_are_listed(window, site):
    show(window, site, site.run, site.second)
    window.wait_for_selector("text=Settings that differ")
    text = window.locator("table").last.inner_text()
    assert "model.backbone" in text and "vit_micro_patch8_w32" in text


@pytest.fixture
def growing(site):
    """A copy of the long run that has just begun: its first hundred lines. Removed from the catalog afterwards."""
    folder = site.second.with_name("growing")
    shutil.copytree(site.second, folder)
    (folder / "report.html").unlink(missing_ok=True)
    lines = (site.second / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:100]))
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "growing", folder)
    site.catalog.runs.append(run)
    yield folder, lines
    site.catalog.runs.remove(run)
    shutil.rmtree(folder)


def test_a_running_run_is_followed(window, site, growing):
    folder, lines = growing
    show(window, site, folder)
    card = window.locator(".runs-list .card", has_text="growing")
    assert "running" in card.inner_text() and "594 of" in card.inner_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(lines[100:150]))
    until(window, "[...document.querySelectorAll('.card')].some(card => card.innerText.includes('894 of'))")
    assert window.locator("[data-healthy]").count() == 1


def test_the_doctor_speaks_while_a_run_goes_wrong(window, site, growing):
    folder, lines = growing
    show(window, site, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(600, 1200, 6):
            line = json.loads(lines[99]) | {"step": step, "grad_norm": 900.0}
            file.write(json.dumps(line) + "\n")
    window.wait_for_selector(".note strong:has-text('growing: diverged')")
    note = window.locator(".note").first.inner_text()
    assert "Likely cause" in note and "--set optim.lr=" in note


CARD = "[...document.querySelectorAll('.runs-list .card')].find(card => card.innerText.includes('growing')).innerText"


def test_the_card_follows_a_run_to_its_end(window, site, growing):
    folder, lines = growing
    measured = (folder / "evaluation.json").read_bytes()
    (folder / "evaluation.json").unlink()
    show(window, site, folder)
    until(window, f"{CARD}.includes('for 594 steps')")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(lines[100:150]))
    until(window, f"{CARD}.includes('for 894 steps') && {CARD}.includes('894 of 1,200 steps')")
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(900, 1200, 6):
            file.write(json.dumps(json.loads(lines[99]) | {"step": step, "grad_norm": 900.0}) + "\n")
    until(window, f"{CARD}.includes('Doctor: diverged since step')")
    window.locator("main").get_by_text("has not been evaluated:").wait_for()
    window.get_by_label("Show growing").focus()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "evaluation.json").write_bytes(measured)
    (folder / "report.html").write_text("<h1>growing</h1>")
    until(window, f"{CARD}.includes('finished') && !{CARD}.includes('running') && {CARD}.includes('Report')")
    assert "has not been evaluated" not in window.evaluate(CARD)
    window.wait_for_selector("h2:has-text('growing: few-label evaluation')")
    assert window.evaluate("document.activeElement.ariaLabel") == "Show growing"  # the keyboard keeps its place


def test_the_card_of_a_running_run_is_followed_though_another_is_looked_at(window, site, growing):
    folder, lines = growing
    show(window, site, site.run)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(lines[100:150]))
    until(window, f"{CARD}.includes('894 of 1,200 steps')")
    assert window.locator(".key li").all_inner_texts() == ["short"]


def test_a_report_opens_in_its_sandbox(window, site):
    show(window, site, site.run)
    with window.context.expect_page() as opened:
        window.locator(".card", has_text="short").get_by_role("link", name="Report").click()
    opened.value.wait_for_load_state()
    assert opened.value.locator("h1").count() == 1


def test_a_tail_reads_whole_lines_and_notices_a_new_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert tail.read() == (False, [{"step": 0}, {"step": 1}])
    with path.open("a") as file:
        file.write('p": 2}\nnonsense\n[1]\n')
    assert tail.read() == (False, [{"step": 2}])
    temporary = tmp_path / "new"
    temporary.write_text('{"step": 0, "again": 1}\n')
    temporary.replace(path)
    assert tail.read() == (True, [{"step": 0, "again": 1}])


def test_the_command_that_measures_is_whole_where_the_data_are_known(window, site, copied):
    (copied / "evaluation.json").unlink()
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["data"] |= {"source": "/data/a b.zip", "manifest": "/data/t.csv", "group": "patient"}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    show(window, site, copied)
    code = window.locator("main p.soft code")
    code.wait_for()
    command = f"saccade evaluate {copied} '/data/a b.zip' --labels /data/t.csv --group patient"
    assert code.inner_text() == command
    config["data"]["split"] = "all"  # nothing is left to test on
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    show(window, site, copied)
    code.wait_for()
    assert code.inner_text() == f"saccade evaluate {copied} DATA"


def test_settings_become_dotted_names():
    assert flat({"a": {"b": 1, "c": float("nan")}, "d": None}) == {"a.b": 1, "a.c": None, "d": None}


def test_no_folder_of_this_machine_is_shown():
    assert flat({"data": {"source": "/home/ann/lung"}, "e": "m/x"}) == {"data.source": "lung", "e": "m/x"}
