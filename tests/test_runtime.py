"""What a run asks of the machine."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from saccade import runtime
if {keep}:
    runtime.keep_freed_memory()
def touch():
    torch.ones(2**24)
for _ in range(10):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_the_system():
    """64 MiB are 16,384 pages, fewer where the system takes huge ones; kept, they are new only once."""
    faults = {}
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        faults[keep] = int(done.stdout)
    assert faults[True] < 1000
    assert faults[True] < faults[False] / 4 or faults[False] < 1000
