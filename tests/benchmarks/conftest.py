"""The scripts of benchmarks/ as modules."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch) -> Path:
    """The folder of the benchmarks, on the path; the number of threads is restored afterwards."""
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    yield ROOT
    torch.set_num_threads(threads)
