"""What this process has loaded (parts of models, LoRAs), in a bounded memory, each once for all jobs that use it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from prefect_regional_diffusion.tasks.machine.metrics import is_first_use, tell
from prefect_regional_diffusion.tasks.machine.once import once
from prefect_regional_diffusion.tasks.machine.settings import settings


@dataclass
class _Entry:
    value: Any
    bytes: int
    users: int = 0
    names: set[str] = field(default_factory=set[str])


class LoadedParts:
    """Values by key, at most so many bytes of them as long as not more are in use at once.

    Least recently used values are evicted before another one is loaded; those in use never. Thread-safe: one value is
    loaded at a time, and a thread that needs a value which another one is loading waits for it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._max_bytes = most_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()
        self._load_lock = Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        with self._lock:
            return self._total()

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Keys of all values, the least recently used first."""
        with self._lock:
            return tuple(self._entries)

    @property
    def names(self) -> frozenset[str]:
        """What jobs call the values that are here, as far as that was said."""
        with self._lock:
            return frozenset(name for entry in self._entries.values() for name in entry.names)

    @contextmanager
    def using(self, key: Hashable, size: int, load: Callable[[], Any], name: str | None = None) -> Generator[Any]:
        """The value under a key, which stays in memory within the block; it is loaded if it is not there.

        `size` are its bytes, `name` is what the job calls it. A value that exceeds the bound by itself is evicted after
        the block.
        """
        entry = self._acquire(key)
        if entry is None:
            with self._load_lock:
                # Another thread may have loaded it meanwhile.
                entry = self._acquire(key) or self._load_entry(key, size, load)
        if name is not None:
            with self._lock:
                entry.names.add(name)
        try:
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                self._shrink(self._max_bytes)

    def let_go(self, is_unwanted: Callable[[Hashable], bool]) -> None:
        """Evict all values whose key is unwanted, but for those that are in use."""
        with self._lock:
            for key in [key for key, entry in self._entries.items() if is_unwanted(key) and not entry.users]:
                del self._entries[key]

    def _acquire(self, key: Hashable) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.users += 1
            return entry

    def _load_entry(self, key: Hashable, size: int, load: Callable[[], Any]) -> _Entry:
        with self._lock:
            self._shrink(self._max_bytes - size)
        entry = _Entry(load(), size, users=1)
        with self._lock:
            self._entries[key] = entry
        return entry

    def _shrink(self, most: int) -> None:
        """Evict values that are not in use, the least recently used first, until at most so many bytes are left."""
        total = self._total()
        for key, entry in list(self._entries.items()):
            if total <= most:
                return
            if not entry.users:
                del self._entries[key]
                total -= entry.bytes

    def _total(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())


@once
def loaded_parts() -> LoadedParts:
    """Those of this process."""
    return LoadedParts(settings().most_loaded_bytes())


@contextmanager
def counted_use(
    kind: str, key: Hashable, size: int, load: Callable[[], Any], name: str | None = None
) -> Generator[Any]:
    """`LoadedParts.using` of this process' values, counted for its worker as a load or a hit of such a `kind`.

    A run hits a value once, however often it uses it.
    """
    seconds: float | None = None

    def timed_load() -> Any:
        nonlocal seconds
        began = time.monotonic()
        value = load()
        seconds = time.monotonic() - began
        return value

    with loaded_parts().using(key, size, timed_load, name) as value:
        first = is_first_use(key)
        if seconds is not None:
            tell("model_loads", 1, kind)
            tell("model_load_seconds", seconds, kind)
        elif first:
            tell("model_hits", 1, kind)
        yield value
