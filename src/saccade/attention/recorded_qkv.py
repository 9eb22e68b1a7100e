"""Queries, keys and values of every layer for one input, and what can be read from them. numpy, no torch.

Equation 1 of Vaswani et al. 2017 (arXiv:1706.03762), row by row: a click on a patch costs one product of a query with
all keys. Rollout is Abnar and Zuidema 2020 (arXiv:2005.00928). The same for images, volumes and sentences: only the
caller knows what a token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from saccade.errors import UsageError

ROLLED_TOKENS = 1100  # up to here rollout of all tokens is kept: 4.8 MiB
CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Pair:
    """One query and one key of one head, with every number between them and the weight.

    query, key, value  [Dk], [Dk], [Dv]: what the first asks, the second offers, and hands over
    products           [Dk], query times key, dimension by dimension; their sum is ``dot``
    score              dot / sqrt(Dk)
    weight             exp(score) / ``total``, the sum over all keys; scores enter less their largest (``largest``)
    rank               how many keys of this query have a larger weight
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    products: np.ndarray
    dot: float
    score: float
    largest: float
    total: float
    weight: float
    rank: int


@dataclass(frozen=True)
class Compared:
    """queries, keys [L H N Dk], values [L H N Dv] float32; ``seen`` [N N] bool a layer, where not all keys are seen.

    Tokens come as the network has them: class and register tokens first, where there are any.
    """

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    seen: Sequence[np.ndarray | None] = ()
    _rolled: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def depth(self) -> int:
        return int(self.queries.shape[0])

    @property
    def heads(self) -> int:
        return int(self.queries.shape[1])

    @property
    def tokens(self) -> int:
        return int(self.queries.shape[2])

    @property
    def nbytes(self) -> int:
        """Of everything kept, rollout included."""
        masks = {id(one): one.nbytes for one in self.seen if one is not None}
        rolled = 4 * self.tokens**2 if self.tokens <= ROLLED_TOKENS else 0
        return self.queries.nbytes + self.keys.nbytes + self.values.nbytes + sum(masks.values()) + rolled

    def seen_counts(self, layer: int) -> np.ndarray | None:
        """How many keys each query of a layer sees [N]; None where each sees all. Raises UsageError as ``scores``."""
        self._check(layer, 0, 1)
        seen = self.seen[layer] if self.seen else None
        return None if seen is None else seen.sum(axis=1)

    def scores(self, layer: int, first: int, count: int = 1) -> np.ndarray:
        """q k / sqrt(Dk) of the queries ``first`` and following, float32 [H R N]; -inf where a key is not seen.

        Raises UsageError for a layer or token that is not there.
        """
        self._check(layer, first, count)
        query = self.queries[layer, :, first : first + count] * np.float32(self.queries.shape[-1] ** -0.5)
        found = query @ self.keys[layer].swapaxes(-1, -2)
        seen = self.seen[layer] if self.seen else None
        return found if seen is None else np.where(seen[first : first + count], found, np.float32(-np.inf))

    def rows(self, layer: int, first: int, count: int = 1) -> np.ndarray:
        """Attention weights float32 [H R N]; each row sums to 1. Raises UsageError as ``scores``."""
        found = self.scores(layer, first, count)
        found -= found.max(axis=-1, keepdims=True)
        np.exp(found, out=found)
        found /= found.sum(axis=-1, keepdims=True)
        return found

    def fan(self, token: int) -> np.ndarray:
        """The rows of one query in every layer and head, [L H N]."""
        return np.stack([self.rows(layer, token)[:, 0] for layer in range(self.depth)])

    def rollout(self, first: int, count: int = 1) -> np.ndarray:
        """What tokens of the last layer draw from every input token, float32 [R N]: rows of the product of (A + I) / 2.

        A is the mean over heads. Raises UsageError for a token that is not there.
        """
        self._check(0, first, count)
        if self.tokens > ROLLED_TOKENS:
            return self._through(np.eye(self.tokens, dtype=np.float32)[first : first + count])
        if not self._rolled:
            self._rolled.append(self._through(np.eye(self.tokens, dtype=np.float32)))
        return self._rolled[0][first : first + count]

    def pair(self, layer: int, head: int, query: int, key: int) -> Pair:
        """Raises UsageError for a layer, head or token that is not there, and where the key is not seen."""
        self._check(layer, key, 1)
        if not 0 <= head < self.heads:
            raise UsageError("no such head", got=head, expected=f"0 to {self.heads - 1}")
        scores = self.scores(layer, query)[head, 0].astype(np.float64)
        if not np.isfinite(scores[key]):
            raise UsageError(
                "this query does not see that key", got=f"{query} and {key}", hint="attention is local here"
            )
        largest = float(scores.max())
        raised = np.exp(scores - largest)
        q, k = self.queries[layer, head, query], self.keys[layer, head, key]
        return Pair(
            query=q,
            key=k,
            value=self.values[layer, head, key],
            products=q * k,
            dot=float(scores[key] * self.queries.shape[-1] ** 0.5),
            score=float(scores[key]),
            largest=largest,
            total=float(raised.sum()),
            weight=float(raised[key] / raised.sum()),
            rank=int((raised > raised[key]).sum()),
        )

    def _through(self, weights: np.ndarray) -> np.ndarray:
        """``weights`` [R N] times all layers, last first; each layer's matrix is made some rows at a time."""
        size = max(1, CHUNK_ELEMENTS // (self.heads * self.tokens))
        for layer in reversed(range(self.depth)):
            total = np.zeros_like(weights)
            for start in range(0, self.tokens, size):
                count = min(size, self.tokens - start)
                total += weights[:, start : start + count] @ self.rows(layer, start, count).mean(axis=0)
            weights = 0.5 * weights + 0.5 * total
        return weights

    def _check(self, layer: int, first: int, count: int) -> None:
        if not 0 <= layer < self.depth:
            raise UsageError("no such layer", got=layer, expected=f"0 to {self.depth - 1}")
        if first < 0 or count < 1 or first + count > self.tokens:
            raise UsageError("no such token", got=f"{first} to {first + count - 1}", expected=f"0 to {self.tokens - 1}")
