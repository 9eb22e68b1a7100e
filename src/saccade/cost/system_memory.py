"""Memory of this machine, as a process may use it: what is free, and what its control group still allows. No torch."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from saccade.errors import UsageError

GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def available(
    meminfo: Path = Path("/proc/meminfo"), groups: tuple[tuple[Path, Path, Path], ...] = GROUPS
) -> int | None:
    """Bytes that this process may still take without swapping; None where the system does not say (not Linux)."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    if match is None:
        return None
    limits = [1024 * int(match[1])]
    for limit, used, stat in groups:
        with contextlib.suppress(OSError, ValueError):
            allowed, taken = int(limit.read_text()), int(used.read_text())
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", stat.read_text(), re.MULTILINE)
            limits.append(allowed - taken + (int(cached[1]) if cached else 0))
    return max(0, min(limits))


def resident() -> int:
    """Bytes that this process holds now; 0 where the system does not say."""
    try:
        match = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0


def parse_size(text: str) -> int:
    """Bytes of ``12GB``, ``800M``, ``1.5 GiB``; a G is 2^30, as memory is sold. UsageError for anything else."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        assert match is not None
        size = round(float(match[1]) * UNITS[match[2].upper()])
    except (AssertionError, ValueError):
        raise UsageError("not an amount of memory", got=text, expected="for example 12GB or 800MB") from None
    if size <= 0:
        raise UsageError("memory must be above 0", got=text)
    return size


def format_bytes(count: float) -> str:
    """Bytes for people, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"
