"""Every benchmark runs with ``--smoke`` and ends with one JSON object that has both sides."""

import importlib
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
SHARED = {"harness", "peer", "attention_figure"}  # imported by the others
SLOW = {
    "attention_cost",
    "attention_kinds",
    "collapse",
    "end_to_end",
    "equivariance",
    "hierarchy",
    "methods",
    "plan",
    "startup",
    "volumes",
    "weights",
}
SCRIPTS = sorted({path.stem for path in ROOT.glob("*.py")} - SHARED)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SCRIPTS])
def test_the_script_runs(name, benchmarks, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    importlib.import_module(name).main(["--smoke", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for side in ("ours", "peer", "ratio"):
        assert math.isfinite(result[side]), (side, result)
