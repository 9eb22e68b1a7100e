"""Uncertainty of the results of many trainings: bootstrap over test groups, and Student's t for the seeds.

There are two sources of variation. The patients of the test part: whole groups are resampled, the same for every
training, so that comparisons are paired (Efron and Tibshirani 1993). The seed, which determines training images and
initial weights: two or three values are too few for a bootstrap (the range of three covers their mean in 75 % of
studies), so their standard error has the quantile of Student's t. Its variance is pooled over the backbones of one
series and size. What seeds differ by on single patients is part of both, and is taken out of the variance of the
seeds, or out of that of the groups where the seeds have a single degree of freedom. The margin of the groups is that
of ``metrics.interval``; it is combined with the margin of the seeds as the root of their squares (Graybill and Wang
1980; Zou and Donner 2008).
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
from saccade.evaluation.metrics import margin, resampling_weights
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
class SeedError:
    """Standard error of a mean that is due to the seeds, and its degrees of freedom."""

    error: float
    freedom: int

    def margin(self, level: float) -> float:
        return float(stdtrit(self.freedom, 0.5 + level / 2)) * self.error


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its distribution.

    Parameters
    ----------
    mean, seeds
        Over so many seeds.
    groups
        [R] values of the mean in every resample of ``units`` test groups.
    seed_errors
        Independent errors by the seeds; none where each training was done once.
    spread
        [R] values of the mean that both sources of variation may give, for functions of several estimates.
    comparisons
        Made at once: "clear" needs the interval at 1 - 0.05/comparisons (Bonferroni).
    bounds
        Range of possible values.
    """

    mean: float
    groups: np.ndarray
    units: int
    seed_errors: tuple[SeedError, ...]
    spread: np.ndarray
    seeds: int
    comparisons: int
    bounds: tuple[float, float]

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds and test groups for any difference to be called clear."""
        return self.seeds >= FEW_SEEDS and self.units >= FEW_UNITS

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        margins = [margin(self.groups, self.units, level), *(error.margin(level) for error in self.seed_errors)]
        half = math.hypot(*margins)
        low, high = np.clip([self.mean - half, self.mean + half], *self.bounds)
        return float(low), float(high)

    def turned(self) -> Estimate:
        """The opposite difference."""
        return replace(self, mean=-self.mean, groups=-self.groups, spread=-self.spread)

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


def weighted(parts: Sequence[Estimate], weights: Sequence[float], bounds: tuple[float, float]) -> Estimate:
    """A weighted sum of estimates on the same test groups, whose seeds are independent, as of several sizes."""

    def total(name: str) -> Any:
        return np.sum([w * getattr(part, name) for part, w in zip(parts, weights)], axis=0)

    errors = [replace(e, error=abs(w) * e.error) for part, w in zip(parts, weights) for e in part.seed_errors]
    seeds = min(part.seeds for part in parts)
    mean, units = float(total("mean")), parts[0].units
    return Estimate(mean, total("groups"), units, tuple(errors), total("spread"), seeds, 1, bounds)


@dataclass(frozen=True)
class _SeedVariance:
    """Variance between seeds, and what seeds differ by on single test groups: that part is in the bootstrap too."""

    between: float
    on_groups: float
    freedom: int


def _seed_variance(values: Values, units: int) -> _SeedVariance:
    measured, resampled = np.array(list(values.measured.values())), np.array(list(values.resampled.values()))
    freedom = len(measured) - 1
    on_groups = np.nanvar(resampled - resampled.mean(axis=0), axis=1).mean() * len(measured) / freedom
    return _SeedVariance(float(np.var(measured, ddof=1)), float(on_groups) * units / max(1, units - 1), freedom)


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
    variances = {key: _seed_variance(v, chance.units) for key, v in family.items() if len(v.measured) > 1}
    among = sum(variance.freedom for variance in variances.values())
    free = len(variances) if free is None else max(1, free)
    freedom = max(1, round(free * among / len(variances))) if variances else 0
    pooled, on_groups = (
        sum(variance.freedom * getattr(variance, name) for variance in variances.values()) / among if among else 0.0
        for name in ("between", "on_groups")
    )
    of_seeds = max(0.0, pooled - on_groups) if freedom > 1 else pooled
    draws = chance.seed_draws(size, freedom) if freedom else 0.0
    estimates = {}
    for key, values in family.items():
        seeds = len(values.measured)
        mean = float(np.mean(list(values.measured.values())))
        groups = np.mean(list(values.resampled.values()), axis=0)
        if freedom == 1:
            groups = mean + (groups - mean) * _without(float(np.nanvar(groups)), on_groups / seeds)
        error = SeedError(math.sqrt(of_seeds / seeds), freedom)
        spread = mean + (groups - mean) * chance.widening + draws * error.error
        errors = (error,) if freedom else ()
        estimates[key] = Estimate(mean, groups, chance.units, errors, spread, seeds, comparisons or len(family), bounds)
    return estimates


def _without(variance: float, part: float) -> float:
    """The factor that takes a part out of a variance."""
    return math.sqrt(max(0.0, 1 - part / variance)) if variance > 0 else 1.0
