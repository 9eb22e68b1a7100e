"""``saccade doctor``: what is wrong with a run, and what is installed on this machine."""

from __future__ import annotations

import platform
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import torch

from saccade import __version__, runtime
from saccade.hierarchy import train_levels
from saccade.hierarchy.settings import is_hierarchy
from saccade.methods.diagnosis import Diagnosis
from saccade.train.diagnose import examine_run

EXTRAS = {
    "slides": "openslide",
    "dicom": "pydicom",
    "web": "fastapi",
    "search": "lancedb",
    "map": "openTSNE",
    "umap": "umap",
    "text": "transformers",
    "onnx": "onnx",
}
"""A module of each optional extra."""


def doctor() -> dict[str, Any]:
    """Describe this machine: versions, devices, precision, optional packages, free disk space.

    Examples
    --------
    >>> import saccade
    >>> machine = saccade.doctor()
    >>> machine["saccade"] == saccade.__version__
    True
    """
    device = runtime.pick_device()
    runtime.keep_freed_memory()
    return {
        "saccade": __version__,
        "python": platform.python_version(),
        **runtime.environment(device),
        "precision": runtime.usual_precision(device),
        "cuda_devices": torch.cuda.device_count(),
        "extras": {name: util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }


def examine(run: str | Path) -> list[Diagnosis]:
    """Diagnose a run from its logged metrics.

    Parameters
    ----------
    run : str or Path
        Folder of a run or hierarchy. For a hierarchy, all levels are examined and settings carry the name of their
        level (``region.optim.lr``).

    Returns
    -------
    list of Diagnosis
        Problems in the order in which they appeared; empty for a healthy run.

    Raises
    ------
    UsageError
        When the folder holds no run.
    """
    folder = Path(run)
    return train_levels.examine(folder) if is_hierarchy(folder) else examine_run(folder)
