"""Randomness by name: every stream is derived from words such as (seed, "views", step, item).

The same words give the same numbers on any machine, in any process and in any order of calls, so a
resumed run continues exactly and no result depends on the number of workers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _sequence(words: tuple[int | str, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([w if isinstance(w, int) else zlib.crc32(w.encode()) for w in words])


def numpy_generator(*words: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(_sequence(words)))


def torch_generator(*words: int | str) -> torch.Generator:
    """A CPU generator; use it to draw on the CPU, then move the few numbers to the device."""
    import torch

    state = int(_sequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & 0x7FFF_FFFF_FFFF_FFFF)
