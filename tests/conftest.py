"""Shared fixtures: the real images, found by SACCADE_DATA or beside the checkout."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images described in docs/guides/data.md; skips where it is absent."""
    named = os.environ.get("SACCADE_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real images not found at {path}; set SACCADE_DATA")
    return path
