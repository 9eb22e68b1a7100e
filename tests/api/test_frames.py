"""Results as pandas and polars tables, and as HTML for notebooks."""

import builtins

import numpy as np
import pytest

import saccade
from saccade.base import frames
from saccade.errors import MissingDependency

DATA = "synthetic:tissue?n=24&size=32&groups=6"
MODEL = "random:resnet10_w8"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("frames") / "features.parquet"
    return out, saccade.embed(MODEL, DATA, out=out)


def check(result, rows):
    pandas_frame, polars_frame = result.to_pandas(), result.to_polars()
    assert len(pandas_frame) == len(polars_frame) == rows
    assert list(pandas_frame.columns) == polars_frame.columns
    page = result._repr_html_()
    assert page.startswith(("<table>", "<pre>")) and len(page) < 100_000
    return pandas_frame


def test_features(table):
    frame = check(table[1], 24)
    assert list(frame["id"]) == table[1].ids
    assert np.array_equal(frame.filter(like="feature_").to_numpy(), table[1].features)


def test_evaluation():
    options = saccade.EvaluateOptions(protocol=saccade.ProtocolConfig(fractions=(1.0,), bootstrap=20), baselines=False)
    report = saccade.evaluate([MODEL], "synthetic:tissue?n=80&size=32&groups=8", options=options)
    frame = check(report, len(report.rows))
    assert set(frame["probe"]) == {"knn", "logistic"} and list(frame["mean"]) == [row["mean"] for row in report.rows]


def test_search(table, tmp_path):
    from PIL import Image

    pixels = saccade.open_source(DATA).read(3).pixels
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "query.png")
    frame = check(saccade.search(MODEL, tmp_path / "query.png", store=table[0]), 10)
    assert list(frame["rank"]) == list(range(1, 11)) and frame["similarity"].is_monotonic_decreasing
    amap = saccade.attend("random:vit_micro_patch8", tmp_path / "query.png")
    values = check(amap, amap.selected().values.size)
    row = values.query("head == 1 and row == 2 and column == 3").iloc[0]
    assert row["weight"] == amap.selected().values[1, 2, 3]


def test_plan_and_audit():
    options = saccade.PlanOptions(measure=False)
    plan = saccade.plan(backbone="resnet10_w8", settings={"model.size_px": 32, "train.batch": 4}, options=options)
    assert check(plan, 1 + len(plan.to_dict()["alternatives"]))["peak"][0] == plan.peak
    assert saccade.show(DATA)._repr_html_().startswith("<pre>")


def test_html_is_escaped_and_small():
    page = frames.to_html("<script>", {"<b>": ["<i>"] * 50, "y": [None] * 50})
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert page.count("<tr>") == 1 + frames.HTML_ROWS and "50 rows, 2 columns" in page
    assert "<pre>&lt;" in frames.text_to_html("<x>")


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_missing_package_is_named(name, table, monkeypatch):
    real = builtins.__import__

    def refuse(module, *rest, **names):
        if module == name:
            raise ImportError(module)
        return real(module, *rest, **names)

    monkeypatch.setattr("importlib.import_module", lambda module: refuse(module))
    with pytest.raises(MissingDependency, match=r"saccade\[frames\]"):
        getattr(table[1], f"to_{name}")()
