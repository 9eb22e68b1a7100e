"""Uncertainty of the results of many trainings: bootstrap over test groups, and Student's t for the seeds.

There are two sources of variation. The patients of the test part: whole groups are resampled, the same for every
training, so that comparisons are paired (Efron and Tibshirani 1993). The seed, which determines training images and
initial weights: two or three values are too few for a bootstrap (the range of three covers their mean in 75 % of
studies), so every resample adds a Student t draw times their standard error, as in a two-way layout (Scheffe 1959). The
variance is pooled over the backbones of one series and size, and never smaller than a backbone's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import chdtri, stdtrit

from saccade.base.random import numpy_generator
from saccade.data.splits import unit_names
from saccade.evaluation.metrics import resampling_weights
from saccade.evaluation.small_samples import FEW_UNITS

FEW_SEEDS = 2  # with one seed the variance between seeds is unknown, and no difference is called clear


class Chance:
    """R resamples of the test groups, and draws for the seeds; the same for every result."""

    def __init__(self, groups: Sequence[str | None], resamples: int, seed: int):
        self.seed = seed
        self.units = len(set(unit_names(groups)))
        self.weights = resampling_weights(groups, resamples, seed).astype(np.float64)
        # A bootstrap of G units has (G-1)/G of the variance and normal tails: with 10 groups 95 % would be 91 %.
        free = max(1, self.units - 1)
        self.widening = np.sqrt(self.units / chdtri(free, self._even("units")))

    def seed_draws(self, size: int, freedom: int) -> np.ndarray:
        """[R] draws of Student's t, independent for every size."""
        draws: np.ndarray = stdtrit(freedom, self._even("seeds", size))
        return draws

    def _even(self, *stream: int | str) -> np.ndarray:
        """[R] evenly spaced in 0 to 1, in random order: tails are accurate even with few resamples."""
        order = numpy_generator(self.seed, *stream).permutation(len(self.weights))
        return (order + 0.5) / len(order)


@dataclass(frozen=True)
class Values:
    """A metric by seed: on the test part, and [R] in every resample of its groups."""

    measured: Mapping[int, float]
    resampled: Mapping[int, np.ndarray]

    def minus(self, other: Values) -> Values:
        """The difference, for the seeds that both have."""
        return combine([self, other], (1.0, -1.0))


def combine(parts: Sequence[Values], weights: Sequence[float]) -> Values:
    """A weighted sum, for the seeds that all have."""
    seeds = sorted(set.intersection(*(set(part.measured) for part in parts)))
    return Values(
        {s: sum(w * part.measured[s] for part, w in zip(parts, weights)) for s in seeds},
        {s: np.sum([w * part.resampled[s] for part, w in zip(parts, weights)], axis=0) for s in seeds},
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its distribution.

    Parameters
    ----------
    mean, seeds
        Over so many seeds.
    spread
        [R] values of the mean in every resample.
    comparisons
        Made at once: "clear" needs the interval at 1 - 0.05/comparisons (Bonferroni).
    enough
        There are enough seeds and test groups for any difference to be called clear.
    bounds
        Range of possible values.
    """

    mean: float
    spread: np.ndarray
    seeds: int
    comparisons: int
    enough: bool
    bounds: tuple[float, float]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        tail = 50 * (1 - level)
        low, high = np.clip(np.nanpercentile(self.spread, [tail, 100 - tail]), *self.bounds)
        return float(low), float(high)

    def turned(self) -> Estimate:
        """The opposite difference."""
        return replace(self, mean=-self.mean, spread=-self.spread)

    def row(self, name: str = "difference") -> dict[str, Any]:
        low, high = self.interval()
        strict = self.interval(1 - 0.05 / self.comparisons)
        clear = self.enough and (min(low, *strict) > 0 or max(high, *strict) < 0)
        row: dict[str, Any] = {name: self.mean, "low": low, "high": high}
        if name == "difference":
            row |= {"strict_low": strict[0], "strict_high": strict[1], "comparisons": self.comparisons}
            row["clear"] = bool(clear)
        return {key: _plain(value) for key, value in row.items()} | {"seeds": self.seeds}


def _plain(value: Any) -> Any:
    """None for numbers that are not finite, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge(
    family: Mapping[Any, Values],
    chance: Chance,
    size: int,
    *,
    free: int | None = None,
    comparisons: int | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> dict[Any, Estimate]:
    """Estimates of a family of values with one pooled variance between seeds.

    Parameters
    ----------
    free
        Number of independent values (B - 1 for the pairs of B backbones); None: all.
    comparisons
        None: the number of values.
    """
    family = {key: values for key, values in family.items() if values.measured}
    variances = {key: np.var(list(v.measured.values()), ddof=1) for key, v in family.items() if len(v.measured) > 1}
    among = sum(len(family[key].measured) - 1 for key in variances)
    pooled = sum((len(family[key].measured) - 1) * variances[key] for key in variances) / among if among else 0.0
    free = len(variances) if free is None else max(1, free)
    freedom = max(1, round(free * among / len(variances))) if variances else 0
    draws = chance.seed_draws(size, freedom) if freedom else 0.0
    estimates = {}
    for key, values in family.items():
        seeds = len(values.measured)
        mean = float(np.mean(list(values.measured.values())))
        groups = (np.mean(list(values.resampled.values()), axis=0) - mean) * chance.widening
        error = math.sqrt(max(variances.get(key, 0.0), pooled) / seeds)
        enough = seeds >= FEW_SEEDS and chance.units >= FEW_UNITS
        estimates[key] = Estimate(
            mean, mean + groups + draws * error, seeds, comparisons or len(family), enough, bounds
        )
    return estimates
