"""The report: what it claims, what it leaves out, that it never fetches, never crashes, never runs data."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fake_run
from saccade.errors import UsageError
from saccade.reporting.evaluation_results import clear, finding, read_evaluation, undecided
from saccade.reporting.html import duration, h, join, number, percent
from saccade.reporting.run_files import read_run
from saccade.reporting.run_report import headline, warnings
from saccade.reporting.section_evaluation import evaluation_blocks
from saccade.reporting.write import write_report
from strict_html import parse


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fake_run.write_fake_run(tmp_path_factory.mktemp("report") / "lung-vit")


@pytest.fixture(scope="module")
def text(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_one_group_has_no_interval_and_nothing_is_clear():
    values = fake_run.evaluation()
    values["protocol"]["units_test"] = 1
    found = read_evaluation(values)
    assert all("low" not in row and "high" not in row for row in (*found.rows, *found.all_rows, *found.differences))
    assert not any(clear(one) for one in found.differences)


def test_intervals_over_few_groups_are_marked_beside_every_figure():
    values = fake_run.evaluation()
    blocks = join(evaluation_blocks(read_evaluation(values)))
    assert "means nothing" not in blocks and " ?" not in blocks
    values["protocol"] |= {"units_test": 3, "groups_test": 3}
    blocks = join(evaluation_blocks(read_evaluation(values)))
    assert "? The test part is 3 groups: an interval over so few means nothing." in blocks
    assert "intervals over 3 groups only" in blocks and blocks.count(" ?</") >= len(read_evaluation(values).rows)


def test_a_live_k_nn_that_is_never_right_is_nowhere(tmp_path):
    """As on the page of runs; one that is right once is drawn as it is."""
    folder = fake_run.write_fake_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
    figures = {"step": 3, "rank": 8.0, "agreement": 0.9, "knn": 0.0}
    (folder / "chosen.json").write_text(json.dumps({"chosen": figures, "last": figures, "rule": "the last"}))
    for right in (0.0, 0.25):
        logged = [line | {"knn": 0.0} for line in lines[:-1]] + [lines[-1] | {"knn": right}]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in logged))
        page = write_report(folder).read_text(encoding="utf-8")
        said = ("k-NN accuracy, live probe", "live k-NN accuracy", "k-NN in %")
        assert [words in page for words in said] == [right > 0] * 3
        assert "Effective rank" in page and "cosine similarity of two views" in page


# --- the whole page ------------------------------------------------------------------------------


def test_sections_stand_in_order(text):
    keys = [attrs["id"] for tag, attrs in parse(text).tags if tag == "section"]
    assert keys == ["labels", "attention", "neighbours", "curves", "data", "why", "protocol", "repeat"]
    links = [a["href"] for tag, a in parse(text).tags if tag == "a"]
    assert links == [f"#{key}" for key in keys]


def test_nothing_is_fetched_and_nothing_runs(text):
    page = parse(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            value = attrs.get(key) or "data:"
            assert value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text and "@import" not in text
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_pictures_have_words(text):
    images = [attrs for tag, attrs in parse(text).tags if tag == "img"]
    assert len(images) == 4 and all(a["alt"] for a in images)
    charts = re.findall(r'<svg[^>]*role="img"[^>]*>\s*<title>[^<]+</title>', text)
    assert len(charts) == text.count("<svg xmlns") == 10


def test_the_same_run_gives_the_same_bytes(run, text):
    assert write_report(run).read_text(encoding="utf-8") == text


def test_report_needs_no_torch(run):
    work = "from saccade.reporting.write import write_report; write_report(sys.argv[1])"
    code = f"import sys; {work}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbers_of_the_run_are_there(text):
    for words in ("2,651", "224 × 224 px", "image file is truncated", "uniform output, ln K = 8.318", "8.4 min"):
        assert words in text
    assert "saccade pretrain lc25000-lung-224.zip" in text


# --- claims --------------------------------------------------------------------------------------


def test_finding_speaks_of_the_smallest_clear_fraction():
    found = read_evaluation(fake_run.evaluation())
    words = finding(found)
    assert words.startswith("With 1 % of the labels (27 images), dino vit_tiny_patch8 classifies 76.0 %")
    assert "12.2 points more than colour histogram" in words


def shifted(move) -> dict:
    values = copy.deepcopy(fake_run.evaluation())
    for d in values["differences"]:
        move(d)
    return values


def test_no_claim_without_a_clear_interval():
    def blur(d):
        d |= {"low": -0.5, "high": 0.5, "clear": True}  # the flag is not trusted, the interval is

    found = read_evaluation(shifted(blur))
    assert finding(found).startswith("No difference between dino vit_tiny_patch8 and the other models is clear")
    assert undecided(found) == list(fake_run.MODELS[1:])


def test_losses_are_claimed_as_well():
    def lose(d):
        if d["against"] == "colour histogram":
            d |= {"difference": -0.05, "low": -0.08, "high": -0.02}

    words = finding(read_evaluation(shifted(lose)))
    assert "but 5.0 points fewer than colour histogram" in words
    assert words.startswith(
        "Colour histogram is better by 5.0 points [2.0 to 8.0] by k-NN with 10 % of the labels (79.4 %"
    )


def test_a_loss_that_is_not_clear_does_not_lead_the_headline():
    def lose(d):
        if d["against"] == "colour histogram":
            d |= {"difference": -0.05, "low": -0.12, "high": 0.02}

    assert "is better by" not in finding(read_evaluation(shifted(lose)))


def test_findings_of_the_doctor_are_badges_of_head_and_table(tmp_path):
    folder = fake_run.write_fake_run(tmp_path / "run", figures=False)
    assert 'class="badge"' not in write_report(folder).read_text(encoding="utf-8")
    record = json.loads((folder / "doctor.json").read_text())
    keys = {"evidence": "rank 1", "cause": "c", "change": {}, "advice": "a"}
    record["diagnoses"] = [{"name": "dimensional collapse", "since": 12, "step": 60} | keys]
    (folder / "doctor.json").write_text(json.dumps(record))
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count('<span class="badge">dimensional collapse since step 12</span>') == 2
    (folder / "doctor.json").write_text(json.dumps(record | {"step": 3}))  # of an earlier state of the run
    assert 'class="badge"' not in write_report(folder).read_text(encoding="utf-8")


def test_drawn_images_are_called_drawn_in_the_first_lines(tmp_path, text):
    assert "Drawn, not real" not in text
    folder = fake_run.write_fake_run(tmp_path / "run", figures=False)
    data = json.loads((folder / "data.json").read_text()) | {"source": "synthetic:tissue?n=60&size=64"}
    (folder / "data.json").write_text(json.dumps(data))
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.index("Drawn, not real") < page.index('class="finding"')


def test_a_larger_fraction_speaks_when_the_smallest_is_silent():
    def blur(d):
        if d["fraction"] == 0.01:
            d |= {"low": -0.5, "high": 0.5}

    assert finding(read_evaluation(shifted(blur))).startswith("With 10 % of the labels (265 images)")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (math.nan, 0.1, False)],
)
def test_clear_means_that_zero_is_outside(low, high, expected):
    assert clear({"low": low, "high": high}) is expected


def test_headline_k_is_20_or_the_nearest_below():
    values = fake_run.evaluation()
    assert {r["k"] for r in read_evaluation(values).rows if r["probe"] == "knn"} == {20}
    for row in values["rows"]:
        row["k"] = {20: 7, 100: 15}.get(row.get("k"), row.get("k"))
    assert {r["k"] for r in read_evaluation(values).rows if r["probe"] == "knn"} == {15}


def test_best_is_marked_by_more_than_colour(text):
    table = text[text.index('<table class="scores"') : text.index("</table>")]
    assert table.count("●") == 6
    assert "<strong>93.0</strong>" in table and "<strong>91.0</strong>" in table


def test_overlap_marks_every_number(run, tmp_path):
    values = fake_run.evaluation()
    values["protocol"]["overlap"] = True
    text = report_of(tmp_path, {"evaluation.json": json.dumps(values)})
    assert "used in pretraining" in text
    table = text[text.index('<table class="scores"') : text.index("</table>")]
    assert table.count("†") == 24


# --- partial and hostile runs --------------------------------------------------------------------


def report_of(folder: Path, files: dict[str, str]) -> str:
    folder = folder / "run"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    text = write_report(folder).read_text(encoding="utf-8")
    parse(text)
    return text


def test_before_evaluation_it_says_the_command(tmp_path):
    text = report_of(tmp_path, {"config.yaml": yaml.safe_dump(fake_run.settings())})
    assert "saccade evaluate run DATA" in text and "Not evaluated yet" in text
    assert "saccade attend run IMAGE" in text


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "data.json", "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"text"', '{"rows": 3, "labels": 4, "step": "x"}'])
def test_any_single_broken_file_is_survived(tmp_path, name, content):
    report_of(tmp_path, {name: content})


def test_values_of_the_wrong_kind_are_survived(tmp_path):
    data = fake_run.data_record() | {
        "labels": {"a": None, "b": math.nan},
        "size_px": [1],
        "damaged": 3,
        "groups": "x",
    }
    rows = [{"model": 3, "probe": "knn", "fraction": 0.1, "metric": "f1", "mean": None, "low": math.nan}]
    report_of(
        tmp_path,
        {
            "data.json": json.dumps(data),
            "evaluation.json": json.dumps({"rows": [*rows, 5, {}], "differences": [{"model": 1}], "protocol": 1}),
            "figures/index.json": json.dumps([{"kind": "attention"}, 7, {"kind": "attention", "file": "no.png"}]),
            "config.yaml": "train: {method: dino}\ndino: {out_dim: many}\n",
        },
    )


def test_nan_and_a_torn_line(tmp_path):
    lines = ['{"step": 0, "loss": 8.1, "lr": 0.1}', '{"step": 5, "loss": NaN}', '{"step": 7, "lo']
    text = report_of(tmp_path, {"metrics.jsonl": "\n".join(lines)})
    assert "not finite" in text and "Learning rate" in text and "Effective rank" not in text


def test_collapse_is_named(tmp_path):
    flat = {"loss": 8.318, "teacher_entropy": 8.3177, "kl": 0.0001, "marginal_entropy": 8.3}
    lines = "\n".join(json.dumps(flat | {"step": step}) for step in range(0, 600, 10))
    files = {"metrics.jsonl": lines, "config.yaml": yaml.safe_dump(fake_run.settings())}
    text = report_of(tmp_path, files)
    assert "uniform collapse since step 0" in text and "likely cause" in text
    assert "dino.teacher_temp=0.02" in text


def test_a_healthy_run_has_no_warnings(run):
    assert warnings(read_run(run)) == []


def test_data_is_never_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    data = fake_run.data_record() | {
        "labels": {evil: 3, "b": 4},
        "source": evil,
        "duplicates": [[evil, evil]],
    }
    data["damaged"] = [{"id": evil, "reason": evil}]
    values = json.loads(json.dumps(fake_run.evaluation()).replace("colour histogram", evil))
    values["protocol"] |= {"text": evil, "note": evil}
    settings = fake_run.settings()
    settings["model"]["backbone"] = settings["train"]["method"] = evil
    text = report_of(
        tmp_path,
        {
            "data.json": json.dumps(data),
            "evaluation.json": json.dumps(values),
            "config.yaml": yaml.safe_dump(settings),
            "env.json": json.dumps({"command": evil, "versions": {evil: evil}, evil: evil}),
            "notes.json": json.dumps({"why_network": evil}),
            "metrics.jsonl": json.dumps({"step": 1, "loss": evil}),
            "figures/index.json": json.dumps([{"kind": "attention", "file": evil, "title": evil, "alt": evil}]),
        },
    )
    assert "<script" not in text.lower()
    assert "&lt;script&gt;" in text


def test_figures_come_from_the_figures_folder_only(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG secret")
    index = [{"kind": "attention", "file": name} for name in ("../../secret.png", "../config.yaml", "bad.png")]
    text = report_of(
        tmp_path,
        {"config.yaml": "{}", "figures/index.json": json.dumps(index), "figures/bad.png": "no picture"},
    )
    assert "<img" not in text
    assert text.count("is not in the run folder") == 2 and "bad.png is damaged" in text


def test_not_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="not a run folder"):
            write_report(folder)
    (tmp_path / "tile").mkdir()
    (tmp_path / "tile" / "config.yaml").write_text("{}")
    with pytest.raises(UsageError, match=r"it holds runs: .*tile"):
        write_report(tmp_path)


def test_grey_evaluation_has_its_own_part(run, tmp_path):
    files = {"evaluation.json": json.dumps(fake_run.evaluation())}
    assert "Without colour" not in report_of(tmp_path, files)
    (tmp_path / "run" / "evaluation-grey.json").write_text(files["evaluation.json"])
    assert "Without colour" in write_report(tmp_path / "run").read_text(encoding="utf-8")


# --- small parts ---------------------------------------------------------------------------------


def test_elements_escape_by_construction():
    assert h("p", {"title": '"<'}, "a<b", h("b", None, "&"), None, ["x", 1]) == (
        '<p title="&quot;&lt;">a&lt;b<b>&amp;</b>x1</p>'
    )


def test_numbers():
    assert math.isnan(number("3")) and math.isnan(number(None)) and math.isnan(number(True)) and number(3) == 3
    assert [duration(s) for s in (42, 504, 12000, math.nan)] == ["42 s", "8.4 min", "3.3 h", "–"]
    assert [percent(f) for f in (1.0, 0.1, 0.01, 0.005)] == ["100 %", "10 %", "1 %", "0.5 %"]


# --- in a browser --------------------------------------------------------------------------------


def test_no_sideways_scrolling_in_a_browser(run, text):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next((p for p in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser")) if p.exists()), None)
    if chromium is None:
        pytest.skip("no system chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(chromium), args=flags)
        for width in (360, 768, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            asked: list[str] = []
            complaints: list[str] = []
            page.on("request", lambda r, asked=asked: asked.append(r.url))
            page.on("console", lambda m, complaints=complaints: complaints.append(m.text))
            page.goto((run / "report.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"the page is {wide} px wide in a window of {width} px"
            assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
            assert complaints == []
            page.close()
        browser.close()


def test_headline_without_any_figure(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    assert headline(read_run(tmp_path)).endswith("; not evaluated yet.")
