"""Queries, keys and values of every layer for one input, and the attention that follows from them.

The equations are those of ``models/nn/attention.py``, row by row: a click on a patch costs one product of a query with
all keys. The same for images, volumes and sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from saccade.errors import UsageError, out_of_range
from saccade.models.nn.attention import attention_rows, attention_scores, rollout

ROLLED_TOKENS = 1100  # up to so many tokens the whole rollout is cached: 4.8 MiB


@dataclass(frozen=True)
class QueryKeyPair:
    """One query and one key of one head, with every number between them and the attention weight.

    Parameters
    ----------
    query, key, value : ndarray
        [Dk], [Dk], [Dv].
    products : ndarray
        [Dk], query times key element by element; the sum is ``dot``.
    score : float
        dot / sqrt(Dk).
    largest, total : float
        Largest score of the query, and sum of exp(score - largest) over all keys.
    weight : float
        exp(score - largest) / total.
    rank : int
        Number of keys with a larger weight.
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
class RecordedQKV:
    """Queries, keys and values of all layers.

    Parameters
    ----------
    queries, keys : ndarray
        [L H N Dk] float32; class and register tokens come first.
    values : ndarray
        [L H N Dv] float32.
    visible : sequence
        Per layer bool [N N], which keys a query sees, or None where it sees all; empty where all layers see all.
    """

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    visible: Sequence[np.ndarray | None] = ()
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
        """Bytes held, cached rollout included."""
        masks = {id(mask): mask.nbytes for mask in self.visible if mask is not None}
        rolled = 4 * self.tokens**2 if self.tokens <= ROLLED_TOKENS else 0
        return self.queries.nbytes + self.keys.nbytes + self.values.nbytes + sum(masks.values()) + rolled

    def visible_counts(self, layer: int) -> np.ndarray | None:
        """How many keys each query of a layer sees [N]; None where each sees all. Raises UsageError as ``rows``."""
        self._check(layer, 0, 1)
        visible = self.visible[layer] if self.visible else None
        return None if visible is None else visible.sum(axis=1)

    def rows(self, layer: int, first: int, count: int = 1) -> np.ndarray:
        """Attention weights of ``count`` queries from ``first`` on, float32 [H R N]; each row sums to 1.

        Raises
        ------
        UsageError
            A layer or token does not exist.
        """
        self._check(layer, first, count)
        rows = torch.arange(first, first + count)
        query, key = self._heads(self.queries, layer), self._heads(self.keys, layer)
        weights: np.ndarray = attention_rows(query, key, rows, self._mask(layer, rows))[0].numpy()
        return weights

    def all_layers(self, token: int) -> np.ndarray:
        """The rows of one query in every layer and head, [L H N]."""
        return np.stack([self.rows(layer, token)[:, 0] for layer in range(self.depth)])

    def rollout(self, first: int, count: int = 1) -> np.ndarray:
        """Rows of rollout, the product of (A + I) / 2 over all layers, with A the mean over heads: float32 [R N].

        Raises
        ------
        UsageError
            A token does not exist.
        """
        self._check(0, first, count)
        if self.tokens > ROLLED_TOKENS:
            return self._rollout(first, count)
        if not self._rolled:
            self._rolled.append(self._rollout(0, self.tokens))
        return self._rolled[0][first : first + count]

    def pair(self, layer: int, head: int, query: int, key: int) -> QueryKeyPair:
        """Every number between one query and one key.

        Raises
        ------
        UsageError
            A layer, head or token does not exist, or the key is not visible to the query.
        """
        self._check(layer, key, 1)
        if not 0 <= head < self.heads:
            raise out_of_range("head", head, self.heads - 1)
        self._check(layer, query, 1)
        rows = torch.tensor([query])
        queries, keys = self._heads(self.queries, layer)[:, head : head + 1], self._heads(self.keys, layer)
        computed = attention_scores(queries[:, :, rows], keys[:, head : head + 1], self._mask(layer, rows))
        scores = computed[0, 0, 0].numpy().astype(np.float64)
        if not np.isfinite(scores[key]):
            raise UsageError(
                "this key is not visible to the query", got=f"{query} and {key}", hint="this layer attends locally"
            )
        largest = float(scores.max())
        raised = np.exp(scores - largest)
        q, k = self.queries[layer, head, query], self.keys[layer, head, key]
        return QueryKeyPair(
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

    def _heads(self, values: np.ndarray, layer: int) -> Tensor:
        """[1 H N D] of one layer."""
        return torch.from_numpy(values[layer])[None]

    def _mask(self, layer: int, rows: Tensor) -> Tensor | None:
        """[R N], True where these queries see a key; None where they see all."""
        visible = self.visible[layer] if self.visible else None
        return None if visible is None else torch.tensor(visible[rows.numpy()])

    def _rollout(self, first: int, count: int) -> np.ndarray:
        queries = [self._heads(self.queries, layer) for layer in range(self.depth)]
        keys = [self._heads(self.keys, layer) for layer in range(self.depth)]
        weights = rollout(queries, keys, torch.arange(first, first + count), mask=self._mask)
        rows: np.ndarray = weights[0].numpy()
        return rows

    def _check(self, layer: int, first: int, count: int) -> None:
        if not 0 <= layer < self.depth:
            raise out_of_range("layer", layer, self.depth - 1)
        if first < 0 or count < 1 or first + count > self.tokens:
            raise out_of_range("token", f"{first} to {first + count - 1}", self.tokens - 1)
