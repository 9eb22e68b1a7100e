"""Shared fixtures: the real images, found by SACCADE_DATA or beside the checkout."""

import os
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook
from threadpoolctl import threadpool_limits

# The tests are small: more threads only wait for each other. The variable is for torch and for processes that tests
# start; numpy is there already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))

# Shapes and types of the tensor functions are checked wherever a test calls them (house rule 6).
install_import_hook(
    [
        "saccade.augment",
        "saccade.methods",
        "saccade.models.nn",
        *(f"saccade.models.backbones.{name}" for name in ("text", "vit_weights", "weight_formats")),
    ],
    "beartype.beartype",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images described in docs/guides/data.md; skips where it is absent."""
    named = os.environ.get("SACCADE_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real images not found at {path}; set SACCADE_DATA")
    return path


@pytest.fixture
def unchecked():
    """For tests of what users are told: their mistakes must meet our errors, not the checker's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
