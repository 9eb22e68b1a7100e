"""The quick start, shortened: images, two runs beside random weights, and a page that says the tissue is drawn."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from saccade.cli.app import app


def test_the_quick_start_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("saccade.tasks.quickstart.DRAWN", "synthetic:tissue?n=160&size=32&groups=12")
    monkeypatch.setattr("saccade.tasks.quickstart.SETTINGS", {"model.size_px": 32, "train.batch": 16})
    out = tmp_path / "quick"
    result = CliRunner().invoke(app, ["quickstart", "--out", str(out), "--minutes", "0.15", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    models = {row["model"] for row in report["evaluation"]["rows"]}
    assert {"random weights", "pixels", "colour histogram"} < models and len(models) == 5
    page = (out / "run" / "report.html").read_text()
    assert "Drawn, not real" in page and "drawn by saccade" in page
    assert len(list((out / "tissue").glob("*.png"))) == 160
    again = CliRunner().invoke(app, ["quickstart", "--out", str(out)])
    assert again.exit_code != 0
