"""Randomness by name: every stream is derived from words such as (seed, "views", step, item).

The same words give the same numbers on any machine, in any process and in any order of calls, so a
resumed run continues exactly and no result depends on the number of workers.
"""

from __future__ import annotations

import zlib

import numpy as np


def _sequence(words: tuple[int | str, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([w if isinstance(w, int) else zlib.crc32(w.encode()) for w in words])


def numpy_generator(*words: int | str) -> np.random.Generator:
    """The generator of a stream.

    Parameters
    ----------
    *words : int or str
        The name of the stream, e.g. ``(seed, "limit")``. Integers must not be negative.

    Examples
    --------
    >>> bool(numpy_generator(0, "limit").integers(100) == numpy_generator(0, "limit").integers(100))
    True
    """
    return np.random.Generator(np.random.PCG64(_sequence(words)))


def seed_number(*words: int | str) -> int:
    """A seed of 63 bits, for generators of other libraries (see ``runtime.torch_generator``)."""
    return int(_sequence(words).generate_state(1, np.uint64)[0]) & 0x7FFF_FFFF_FFFF_FFFF


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def uniforms(seed: int, step: int, items: np.ndarray, count: int, stream: str) -> np.ndarray:
    """[B count] float64 in [0, 1), counter-based: row b depends on (seed, stream, step, items[b]) alone.

    So a sample's numbers are the same in any batch, any order, any process.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = _mix(
            np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64) * golden + np.uint64(zlib.crc32(stream.encode()))
        )
        key = _mix(key + np.uint64(step) * golden)
        rows = _mix(key ^ _mix(np.asarray(items, dtype=np.uint64) * golden + golden))
        slots = np.arange(1, count + 1, dtype=np.uint64) * golden
        bits = _mix(rows[:, None] + slots[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
