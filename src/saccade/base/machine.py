"""What this machine offers to this process, without torch."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """The number of cores that this process may use: at least 1, fewer than the machine has under taskset or SLURM."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
