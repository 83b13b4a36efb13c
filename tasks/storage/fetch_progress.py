"""How far the fetching of a model is: told to the listener of a command."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

FetchListener = Callable[[str, int, int], None]
"""Called with the URL, the bytes that are here, and all bytes that are fetched of it."""

fetch_listener: ContextVar[FetchListener | None] = ContextVar("fetch_listener", default=None)


class FetchProgress:
    """Counts the bytes of a model that are fetched."""

    def __init__(self, url: str, total: int) -> None:
        """`total`: bytes of all objects that are not here as a whole."""
        self._url, self._total, self._done = url, total, 0

    def advance(self, size: int) -> None:
        """So many more bytes are here."""
        self._done += size
        listener = fetch_listener.get()
        if listener is not None:
            listener(self._url, self._done, self._total)
