"""What this process has loaded (parts of models, LoRAs), in a bounded memory, each once for all jobs that use it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from prefect_regional_diffusion.tasks.machine.settings import settings


@dataclass
class _Loaded:
    value: Any
    bytes: int
    users: int = 0


class LoadedParts:
    """Values by key, at most so many bytes of them as long as not more are in use at once.

    The one that was used least recently leaves first, before another one is loaded, and none that is in use. Several
    threads may ask: who asks for what another one is loading waits for that, and one is loaded at a time.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._loaded: OrderedDict[Hashable, _Loaded] = OrderedDict()
        self._lock = Lock()
        self._one_at_a_time = Lock()

    @property
    def bytes(self) -> int:
        """Of all that is loaded."""
        with self._lock:
            return self._total()

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Of all that is loaded; the one that was used least recently first."""
        with self._lock:
            return tuple(self._loaded)

    @contextmanager
    def using(self, key: Hashable, size: int, load: Callable[[], Any]) -> Generator[Any]:
        """The value under a key, which stays in memory within the block; it is loaded if it is not there.

        `size` are its bytes. A value that exceeds the bound by itself is let go after the block.
        """
        found = self._taken(key)
        if found is None:
            with self._one_at_a_time:
                # Another thread may have loaded it meanwhile.
                found = self._taken(key) or self._new(key, size, load)
        try:
            yield found.value
        finally:
            with self._lock:
                found.users -= 1
                self._shrink(self._most)

    def let_go(self, unwanted: Callable[[Hashable], bool]) -> None:
        """Let all go whose key is unwanted, but for those that are in use."""
        with self._lock:
            for key in [key for key, one in self._loaded.items() if unwanted(key) and not one.users]:
                del self._loaded[key]

    def _taken(self, key: Hashable) -> _Loaded | None:
        with self._lock:
            found = self._loaded.get(key)
            if found is not None:
                self._loaded.move_to_end(key)
                found.users += 1
            return found

    def _new(self, key: Hashable, size: int, load: Callable[[], Any]) -> _Loaded:
        with self._lock:
            self._shrink(self._most - size)
        made = _Loaded(load(), size, users=1)
        with self._lock:
            self._loaded[key] = made
        return made

    def _shrink(self, most: int) -> None:
        """Let go of what is not in use, the least recently used first, until at most so many bytes are left."""
        total = self._total()
        for key, one in list(self._loaded.items()):
            if total <= most:
                return
            if not one.users:
                del self._loaded[key]
                total -= one.bytes

    def _total(self) -> int:
        return sum(one.bytes for one in self._loaded.values())


@lru_cache(maxsize=1)
def loaded_parts() -> LoadedParts:
    """Those of this process."""
    return LoadedParts(settings().most_loaded_bytes())
