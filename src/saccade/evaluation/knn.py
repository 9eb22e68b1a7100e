"""What the neighbours of an image say about its label: a weighted vote, as in the k-NN of evaluation (DINO's)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Guess:
    """The label with most of the votes; ``shares`` and ``counts`` of every label that has one, largest share first."""

    label: str
    shares: dict[str, float]
    counts: dict[str, int]

    def text(self) -> str:
        votes = ", ".join(f"{name} {share:.0%} ({self.counts[name]})" for name, share in self.shares.items())
        return f"the neighbours vote for {self.label}: {votes}"


def guess(neighbours: Sequence[tuple[str | None, float]]) -> Guess | None:
    """The vote of neighbours (label, cosine similarity s) weighted exp(s / 0.07); None where none has a label."""
    voting = [(label, s) for label, s in neighbours if label]
    if not voting:
        return None
    best = max(s for _, s in voting)
    weights: dict[str, float] = {}
    counts: dict[str, int] = {}
    for label, s in voting:
        weights[label] = weights.get(label, 0.0) + math.exp((s - best) / TEMPERATURE)
        counts[label] = counts.get(label, 0) + 1
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in sorted(weights.items(), key=lambda item: -item[1])}
    return Guess(next(iter(shares)), shares, counts)
