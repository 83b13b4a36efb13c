"""Patience with a store: what may pass is tried again, what will not is said at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sampling_core.errors import StoreError
from tasks.settings import settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FOR_GOOD = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError)
"""Wrong keys, no such bucket, a file where a folder should be: waiting mends none of them."""
_LONGEST_PAUSE = 15.0


def patiently(url: str, work: Callable[[], T]) -> T:
    """What `work` returns, tried again with growing pauses while the store at `url` fails.

    An object store that is down, throttles (503) or times out comes back, and a full disk may be emptied. So
    only after `store_patience` seconds, or at once for a failure that will not pass, this raises StoreError.
    """
    began, pause = time.monotonic(), 0.25
    while True:
        try:
            return work()
        except Exception as error:  # each file system has errors of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            waited = time.monotonic() - began
            if isinstance(error, _FOR_GOOD) or waited + pause > settings().store_patience:
                raise StoreError("store", url, f"a store that answers ({reason})") from error
            logger.warning("%s does not answer (%s); trying again in %.1f s", url, reason, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
