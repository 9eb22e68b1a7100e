"""The examples in docstrings run: every module with a ``>>>`` example is a test."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "saccade"
MODULES = sorted(
    ".".join(("saccade", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", ["api", "tasks.embed", "tasks.evaluate", "tasks.pretrain"])
def test_the_verbs_have_examples(name):
    assert f"saccade.{name}" in MODULES
