"""A thread-safe LRU cache of values, bounded by their bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by a key of their inputs, at most `most_bytes` bytes of them; the least recently used go first.

    Values are shared: callers must not change them. Thread-safe.
    """

    def __init__(self, most_bytes: int, bytes_of: Callable[[V], int]) -> None:
        self._most = most_bytes
        self._bytes_of = bytes_of
        self._bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value under a key, which must determine it; it is made if it is not cached."""
        cached = self.find(key)
        if cached is not None:
            return cached
        value = make()
        self.put(key, value)
        return value

    def find(self, key: K) -> V | None:
        """The value under a key; None if it is not cached."""
        with self._lock:
            cached = self._values.get(key)
            if cached is not None:
                self._values.move_to_end(key)
            return cached

    def put(self, key: K, value: V) -> None:
        """Cache a value under a key, which must determine it. One that is cached already stays."""
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += self._bytes_of(value)
            while self._bytes > self._most:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._bytes_of(oldest)
