"""The documentation site builds without a warning, has the API, and fetches nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saccade

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*src="https?://|<link[^>]*rel="?(?:stylesheet|preconnect)[^>]*https?://'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocstrings", reason="pip install 'saccade[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_public_name_has_an_entry(site):
    page = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    names = {name for _, name in saccade._EXPORTS.values()}  # as they are called where they are defined
    missing = [name for name in names if not re.search(rf'id="saccade\.[\w.]*\b{name}"', page)]
    assert not missing


def test_nothing_is_fetched_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        match = FETCHED.search(page.read_text(encoding="utf-8"))
        assert match is None, (page, match)
