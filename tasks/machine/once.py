"""Values that a process has one of, made when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801 - a decorator
    """A function without arguments is called once, and its value returned from then on.

    Unlike `functools.cache`, also where several threads ask for the value before it is there: they wait for it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, Lock()
        self._made: list[T] = []
        update_wrapper(self, make)

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def cache_clear(self) -> None:
        """Have the value made anew when it is next needed."""
        with self._lock:
            self._made.clear()
