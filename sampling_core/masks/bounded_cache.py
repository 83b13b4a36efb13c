"""Values that were made already, so that each distinct one is made once, in a bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by what they were made from, at most so many bytes of them: the ones that were asked for last.

    Whoever is given one must not change it. Several threads may ask.
    """

    def __init__(self, most_bytes: int, bytes_of: Callable[[V], int]) -> None:
        self._most = most_bytes
        self._bytes_of = bytes_of
        self._bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value under a key, which must tell all that it depends on; it is made if it is not there."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
                return found
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += self._bytes_of(value)
            while self._bytes > self._most:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._bytes_of(oldest)
        return value
