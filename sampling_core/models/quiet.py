"""diffusers and transformers without their own output: their bars and warnings would tear ours apart."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any


class _Quiet:
    """The blocks that are quiet now, of all threads, and how loud the libraries were before the first of them."""

    lock = threading.Lock()
    blocks = 0
    verbosities: tuple[int, ...] = ()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """The libraries' loading bars, advice and warnings would tear our own output apart, and repeat whole prompts.

    Their verbosity is the process': of threads that load and encode at once, the last one to leave restores it.
    """
    loggers = _loggers()
    with _Quiet.lock:
        if _Quiet.blocks == 0:
            _Quiet.verbosities = tuple(library.get_verbosity() for library in loggers)
            for library in loggers:
                library.set_verbosity_error()
                library.disable_progress_bar()
        _Quiet.blocks += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.blocks -= 1
            if _Quiet.blocks == 0:
                for library, verbosity in zip(loggers, _Quiet.verbosities, strict=True):
                    library.set_verbosity(verbosity)
                    library.enable_progress_bar()


def _loggers() -> tuple[Any, ...]:
    # Imported late: it takes a second, which planning can do without.
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    return diffusers_logging, transformers_logging
