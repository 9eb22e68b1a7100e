"""The page of a study: it says what the numbers say, escapes what it is given, and stands when parts are missing."""

from __future__ import annotations

import copy
import csv
import html
import itertools
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_study
from saccade.errors import UsageError
from saccade.evaluation.learning_curves import summarise
from saccade.reporting import study_tables
from saccade.reporting.study_report import render, sentences, to_markdown, write_study
from saccade.viz.interval_charts import STYLES, CostPoint, IntervalCurve, apart, band_svg, cost_svg, key_svg
from strict_html import parse

NS = "{http://www.w3.org/2000/svg}"
NAMES = ("resnet18", "resnet18_c4", "vit_tiny_patch8")


@pytest.fixture(scope="module")
def study():
    return fake_study.study(fake_study.small_summary(), NAMES)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = fake_study.write(tmp_path_factory.mktemp("study") / "out", study)
    assert write_study(folder) == folder / "study.html"
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "study.html").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """The words of the page, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\u00a0", " ").split())


# --- what it says -------------------------------------------------------------------------------


def test_every_conclusion_is_there_with_its_rule(study, text):
    words = shown(text)
    said = sentences(study)
    assert {s["about"] for s in said} == {
        "lead",
        "crossing",
        "augmentation",
        "equivariance",
        "pretraining",
        "robustness",
        "cost",
    }
    for sentence in said:
        assert sentence["text"] in words and sentence["rule"] in words
    assert words.index(said[0]["text"]) < words.index("Learning curves")


def test_the_page_is_one_file_without_script(text):
    parser = parse(text)
    tags = {tag for tag, _ in parser.tags}
    assert "script" not in tags and "link" not in tags and "svg" in tags
    assert not any(key.startswith("on") or key == "src" for _, attrs in parser.tags for key in attrs)
    ids = [attrs["id"] for _, attrs in parser.tags if "id" in attrs]
    links = [attrs["href"] for tag, attrs in parser.tags if tag == "a"]
    assert len(ids) == len(set(ids)) and all(link[1:] in ids for link in links) and len(links) == 10


def test_each_series_has_a_panel_and_each_backbone_one_style(study, text):
    svgs = [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]
    charts = [svg for svg in svgs if svg.get("class") == "chart"]
    # five series, augmentation and three ways of DINO, four ways of the angle, price with fewest and most images
    assert len(charts) == 5 + 4 + 4 + 2
    colours: dict[str, set[str]] = {}
    for chart in charts:
        for name in chart.iter(f"{NS}text"):
            if "".join(name.itertext()) in NAMES:
                colours.setdefault("".join(name.itertext()), set()).add(str(name.get("style")))
    assert {name: len(found) for name, found in colours.items()} == dict.fromkeys(NAMES, 1)
    assert len(set.union(*colours.values())) == 3


def test_numbers_have_units_and_agree(study, text):
    words = shown(text)
    for row in study["summary"]["points"]:
        span = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        assert f"{100 * row['mean']:.1f}{span}" in words
    assert "accuracy in %" in words
    for unit in ("percentage points", "10⁹ operations", "MiB", "images/s", "degrees", "labelled images"):
        assert unit in words
    assert "2.79" in words and "1.6 times (resnet18_c4)" in words
    table = study["summary"]["table"]["blocks"][0]["mean"]["difference"]
    assert f"mean difference{100 * table:+.1f}".replace("-", "−") in words


def test_what_is_unclear_says_so(study):
    value = copy.deepcopy(study)
    for row in value["summary"]["differences"]:
        row["clear"] = False
    assert "not clear" in render(value)
    clear = study_tables.difference({"difference": 0.1, "low": 0.05, "high": 0.2, "clear": True})
    unclear = study_tables.difference({"difference": 0.1, "low": -0.05, "high": 0.2, "clear": False})
    assert (clear.value, clear.below, clear.clear) == ("+10.0", "+5.0 to +20.0", True)
    made = study_tables.ScoreTable("t", "c", ("a", "b"), (("", (("x", (clear,)), ("y", (unclear,)))),))
    assert study_tables.to_html(made).count("not clear") == 1
    assert "**+10.0** (+5.0 to +20.0)" in study_tables.to_markdown(made)
    assert "| y | +10.0 (−5.0 to +20.0) |" in study_tables.to_markdown(made)


def test_a_part_of_a_study_says_that_it_is_one(study):
    value = copy.deepcopy(study)
    value["cells"] = {"done": 12, "planned": 36, "failed": ["resnet18, dino, 100 images, seed 0: out of memory"]}
    value["summary"]["protocol"]["limits"] = ["There are only 4 test groups."]
    words = shown(render(value))
    assert "Only 12 of 36 trainings are done" in words and "There are only 4 test groups." in words
    assert "Failed (1)" in words and "seed 0: out of memory" in words
    assert "Only 12 of 36 trainings are done" in to_markdown(value)
    assert "Only" not in shown(render(study)).split("What follows")[0]


def test_the_csv_has_every_point(study, folder):
    with (folder / "study.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["backbone", "series", "size", "seeds", "mean", "low", "high"]
    points = study["summary"]["points"]
    assert len(rows) == len(points) == 3 * 5 * 2
    for row, point in zip(rows, points):
        assert (row["backbone"], int(row["size"]), int(row["seeds"])) == (point["backbone"], point["size"], 3)
        assert float(row["mean"]) == pytest.approx(point["mean"])


def test_the_markdown_has_whole_tables(study, folder):
    text = (folder / "study.md").read_text(encoding="utf-8")
    assert text.startswith("# Which inductive bias pays?")
    for title in (
        "Conclusions",
        "Learning curves",
        "Two side by side",
        "Corrupted test images",
        "Costs",
        "Augmentation",
    ):
        assert f"## {title}" in text
    columns = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert columns in (0, cells), line
        columns = cells
    assert "resnet18_c4" in text  # an underscore inside a word needs no escape
    for sentence in sentences(study):
        assert study_tables.plain(sentence["text"]) in text


# --- hostile and missing ------------------------------------------------------------------------


def test_hostile_names_do_nothing(tmp_path):
    bad = ("<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "a|b</title><b>*c*[x](javascript:y)")
    answers, truth, groups = fake_study.make(NAMES, sizes=(100, 900), seeds=2, images=120, groups=12)
    names = dict(zip(NAMES, bad))
    hostile = [type(a)(names[a.backbone], a.series, a.size, a.seed, a.scores, a.conditions) for a in answers]
    value = fake_study.study(summarise(hostile, truth, groups, resamples=50), bad)
    value["data"] |= {"name": bad[0], "classes": list(bad), "text": bad[1]}
    value["cells"] |= {"failed": list(bad)}
    value |= {"budget": bad[0], "protocol": bad[1], "settings": {bad[0]: bad[1]}}
    folder = fake_study.write(tmp_path / "out", value)
    text = write_study(folder).read_text(encoding="utf-8")
    parser = parse(text)
    assert not {"script", "img", "b"} & {tag for tag, _ in parser.tags}
    assert not any(key.startswith("on") for _, attrs in parser.tags for key in attrs)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(svg)
    table = (folder / "study.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<(script|img|b)\b", table) and "\\|b" in table
    with (folder / "study.csv").open(newline="", encoding="utf-8") as file:
        assert {row["backbone"] for row in csv.DictReader(file)} == set(bad)


PARTS = ["data", "settings", "budget", "protocol", "backbones", "series", "costs", "drift", "summary", "cells"]
SUMMARY = ["metric", "backbones", "series", "sizes", "conditions", "points", "differences", "augmentation"]
SUMMARY += ["pretraining", "equivariance", "crossings", "robustness", "table", "protocol", "conclusions"]


@pytest.mark.parametrize("part", [*PARTS, *(f"summary.{name}" for name in SUMMARY)])
def test_missing_parts_cost_only_themselves(study, part):
    value = copy.deepcopy(study)
    if part.startswith("summary."):
        del value["summary"][part.partition(".")[2]]
    else:
        del value[part]
    words = shown(render(value))
    parse(render(value))
    assert "Which inductive bias pays?" in words and "Protocol" in words
    assert to_markdown(value).startswith("# Which")
    study_tables.to_csv(value.get("summary", {}))


def test_an_empty_study_is_a_page(tmp_path):
    words = shown(write_study(fake_study.write(tmp_path / "e", {})).read_text(encoding="utf-8"))
    assert "No results yet." in words
    assert (tmp_path / "e" / "study.csv").read_text().startswith("backbone,series,size")
    with pytest.raises(UsageError, match="not found"):
        write_study(tmp_path)


def test_one_training_is_a_page():
    """The first cell of a study that has just begun."""
    answers, truth, groups = fake_study.make(NAMES, sizes=(100,), seeds=1, images=60, groups=12)
    value = fake_study.study(summarise(answers[:1], truth, groups, resamples=50), NAMES)
    words = shown(render(value))
    assert "Learning curves" in words and "leads" not in words and "Crossings of learning curves" not in words


def test_the_same_study_gives_the_same_bytes(study):
    assert render(study) == render(json.loads(json.dumps(study)))


def test_no_torch():
    """The page is written, and the statistics are done, where torch is not needed."""
    code = (
        "import sys, saccade.reporting.study_report, saccade.evaluation.learning_curves; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# --- charts -------------------------------------------------------------------------------------


def texts(svg: str) -> dict[str, ET.Element]:
    return {"".join(found.itertext()): found for found in ET.fromstring(svg).iter(f"{NS}text")}


def six(y: float) -> list[IntervalCurve]:
    """Six curves that end at nearly one place."""
    sizes = [100, 1000, 10_000]
    ends = [[50, 70, y + 0.1 * i] for i in range(6)]
    return [
        IntervalCurve(f"backbone_{i}", i, sizes, v, [x - 3 for x in v], [x + 3 for x in v]) for i, v in enumerate(ends)
    ]


@pytest.mark.parametrize("y", [20, 60, 99])
def test_six_names_stand_apart_inside_the_chart(y):
    svg = band_svg(six(y), title="T", x_label="n", y_label="%", size=(460, 300), y_range=(0, 100))
    heights = sorted(float(texts(svg)[f"backbone_{i}"].get("y")) for i in range(6))
    assert all(b - a > 14.9 for a, b in itertools.pairwise(heights))
    assert heights[0] > 30 and heights[-1] < 270
    assert "backbone_5: from 50 to" in svg


def test_the_axis_is_logarithmic_and_has_the_sizes():
    found = texts(band_svg(six(60), title="T", x_label="n", y_label="%"))
    a, b, c = (float(found[size].get("x")) for size in ("100", "1,000", "10k"))
    assert b - a == pytest.approx(c - b, abs=0.2)
    linear = texts(band_svg(six(60), title="T", x_label="n", y_label="%", log=False, ticks=(0, 5000, 10_000)))
    assert {"0", "5,000", "10k"} <= set(linear)


def test_bands_lie_around_their_lines_and_whiskers_side_by_side():
    svg = ET.fromstring(band_svg(six(60)[:2], title="T", x_label="n", y_label="%"))
    paths = [p for p in svg.iter(f"{NS}path") if p.get("fill-opacity")]
    assert len(paths) == 2
    ys = [float(pair.split()[1]) for pair in re.split("[ML]", paths[0].get("d").rstrip("Z")) if pair]
    assert all(high < low for high, low in zip(ys[:3], reversed(ys[3:])))
    svg = ET.fromstring(band_svg(six(60), title="T", x_label="n", y_label="%", whiskers=True, label_ends=False))
    drawn = [p.get("d") for p in svg.iter(f"{NS}path") if "V" in (p.get("d") or "")]
    first = sorted(float(re.match(r"M([\d.]+)", d).group(1)) for d in drawn)
    assert len(drawn) == 6 and all(b - a > 5.9 for a, b in itertools.pairwise(first)) and first[0] >= 40


def test_styles_differ_by_more_than_colour():
    assert len({style[1] for style in STYLES}) == len({style[2] for style in STYLES}) == len(STYLES) == 6
    assert len({ET.tostring(ET.fromstring(key_svg(i))) for i in range(6)}) == 6


def test_points_that_are_not_there_leave_no_trace():
    gap = IntervalCurve("a", 0, [100, 300, 0, 1000], [1, math.nan, 5, 2], [0, 0, 0, 1], [2, 2, 6, 3])
    svg = band_svg([gap, IntervalCurve("b", 1, [100], [math.inf])], title="T", x_label="n", y_label="")
    assert "a: from 1 to 2" in svg and "nan" not in svg and "inf" not in svg and "b:" not in svg
    assert "no values" in band_svg([], title="T", x_label="n", y_label="")
    assert "no values" in cost_svg([], title="T", x_label="n", y_label="")
    assert "nan" not in band_svg([IntervalCurve("c", 0, [100], [1], [0], [2])], title="T", x_label="n", y_label="")
    spots = [
        CostPoint("a", 0, 0.1, 50, 45, 55),
        CostPoint("b", 1, 2.0, 60, math.nan, math.nan),
        CostPoint("c", 2, 0, 1, 1, 1),
    ]
    svg = cost_svg(spots, title="T", x_label="n", y_label="")
    assert "a: 50 at 0.1; b: 60 at 2" in svg and "nan" not in svg and {"0.1", "1", "2"} <= set(texts(svg))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12).map(sorted))
def test_places_move_apart_and_no_further_than_needed(wanted):
    found = apart(wanted, 15)
    assert all(b - a > 15 - 1e-6 for a, b in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(wanted), abs=1e-6)
    if all(b - a >= 15 for a, b in itertools.pairwise(wanted)):
        assert found == pytest.approx(wanted)
