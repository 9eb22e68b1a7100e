"""A cache with a limit: the least recently used values leave first. Safe to use from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Values by key, up to a total size; the newest value always stays, however large.

    Parameters
    ----------
    limit : int
        Largest total of the sizes given to ``put``: a number of values by default, or of bytes.

    Examples
    --------
    >>> cache: LruCache[str, int] = LruCache(2)
    >>> for number, key in enumerate("abc"):
    ...     cache.put(key, number)
    >>> cache.get("a"), cache.get("c"), len(cache)
    (None, 2, 2)
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, which becomes the most recently used one; None where it is not held."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Hold a value, and let the least recently used ones go where the total exceeds the limit."""
        with self._lock:
            self._total += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, size)
            while self._total > self.limit and len(self._values) > 1:
                self._total -= self._values.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._values)
