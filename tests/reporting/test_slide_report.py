"""The page of results for slides: what is claimed, every number, and hostile names."""

import pytest

from saccade.base.run_folder import write_json
from saccade.evaluation.protocol import EvalReport
from saccade.hierarchy.evaluate_slides import to_markdown, to_text
from saccade.reporting.slide_report import finding, render, write_slide_report


def results(first_ahead=True, name="hierarchy, abmil"):
    """Two heads at two shares of the labels, as nested cross-validation tells them."""
    rows, differences = [], []
    for fraction, count in ((1.0, 24), (0.25, 6)):
        for metric in ("auroc", "balanced_accuracy"):
            for model, mean in ((name, 0.9), ("mean of tiles", 0.5)):
                same = {"fraction": fraction, "metric": metric, "n_train": count}
                rows.append(same | {"model": model, "mean": mean, "low": mean - 0.1, "high": mean + 0.05})
            gap = {"model": name, "against": "mean of tiles", "difference": 0.4, "low": 0.2, "high": 0.6}
            differences.append(same | gap | {"clear": first_ahead})
    protocol = {"classes": ["a", "b"], "text": "32 slides of 16 patients."}
    return {"protocol": protocol, "rows": rows, "differences": differences}


def test_a_lead_is_claimed_only_where_it_is_clear():
    assert finding(results()).endswith("(0.800 to 0.950) with 100 % of the labels. Ahead of mean of tiles.")
    assert finding(results(first_ahead=False)).endswith("Not clearly different from mean of tiles.")


def test_every_number_is_there_and_names_are_text(tmp_path):
    write_json(tmp_path / "slides.json", results(name="<img src=x onerror=alert(1)>"))
    page = write_slide_report(tmp_path).read_text(encoding="utf-8")
    assert "<img" not in page and "&lt;img" in page and "<script" not in page
    assert page.count("0.900 (0.800 to 0.950)") == 1 + 4 and page.count("+0.400 (+0.200 to +0.600)") == 4
    assert "32 slides of 16 patients." in page and "25 % of the labels, 6 slides" in page


@pytest.mark.parametrize("overlap", [True, False])
def test_a_seen_slide_is_warned_of(overlap):
    found = results()
    page = render(found | {"protocol": found["protocol"] | {"overlap": overlap}}, "heads")
    assert ("WARNING" in page) == overlap


def test_few_patients_are_told_beside_every_figure():
    """Where, and only where, the intervals rest on fewer than six."""
    found = results()
    many = found | {"protocol": found["protocol"] | {"units": 16}}
    few = found | {"protocol": found["protocol"] | {"units": 4}}
    many_report, few_report = EvalReport(**many), EvalReport(**few)
    for told in (render(many, "heads"), to_text(many_report), to_markdown(many_report)):
        assert "means nothing" not in told and ") ?" not in told and "] ?" not in told
    page = render(few, "heads").replace("\u00a0", " ")
    assert page.count("(0.800 to 0.950) ?") == 4 and page.count("(+0.200 to +0.600) ?") == 4
    assert "? The test part is 4 patients: an interval over so few means nothing." in page
    assert page.count("mean and 95 % interval, over 4 patients only") == 2
    assert finding(few).count("The interval rests on 4 patients: too few to conclude.") == 1
    assert to_text(few_report).count("[0.800, 0.950] ?") == 2 and "? The test part is 4 patients" in to_text(few_report)
    assert to_markdown(few_report).count("[0.800, 0.950] ?") == 2 and "? The test part is 4 patients" in to_markdown(
        few_report
    )
