"""A command that is told to end (Ctrl-C, SIGTERM) ends within seconds, with one line and the exit code of such an end.

Signals are blocked in all threads, and a thread of its own waits for them. So it does not matter what the others do:
import a library, wait for a socket, sleep until a store is tried again, or hold a handler of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

BEGAN = time.monotonic() - time.process_time()
"""When this process began, on the monotonic clock, if all it did until now was to compute."""

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes by signal: 128 and its number."""

GRACE_SECONDS = 1.5
"""For what is being sampled and written when the signal comes."""
_LAST_WORDS_SECONDS = 0.5
"""For a terminal that does not take the line."""


class _State:
    """What the waiting thread needs to know of the command."""

    stop_requested = False
    """Whether a signal to end has come."""
    last_line: Callable[[], str] = staticmethod(lambda: "stopped")
    cleanups: tuple[Callable[[], None], ...] = ()
    cancel: Callable[[], object] | None = None
    """Cancels the work, if there is any that has something to lose."""
    ended = threading.Event()
    """Set when the work has ended after it was cancelled."""


_state = _State()


def listen() -> None:
    """From now on, until the process ends, SIGINT and SIGTERM end it. To be called once, before other threads begin."""
    # One that is ignored stays so: a shell starts what runs in its background like that.
    signals = {number for number in CODES if signal.getsignal(number) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    if signals:
        threading.Thread(target=_end_by_signal, args=(signals,), name="stopping", daemon=True).start()


def say(line: Callable[[], str]) -> None:
    """Set the function for the last line; it is called when a signal to end has come."""
    _state.last_line = line


def before_last_words(cleanup: Callable[[], None]) -> None:
    """Something to be done before the line is printed, such as to let go of the terminal; the last one comes first."""
    _state.cleanups = (cleanup, *_state.cleanups)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of work. If the process is told to end meanwhile, the work is cancelled and may write what it has."""
    return asyncio.run(_stoppable(work))


async def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    _state.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        return await task
    finally:
        _state.cancel = None
        if _state.stop_requested:
            _state.ended.set()
            # The other thread ends the process; on the way out of here, libraries would have much to say.
            threading.Event().wait()


def _end_by_signal(signals: set[signal.Signals]) -> None:
    code = CODES[signal.Signals(signal.sigwait(signals))]
    # At a second signal it ends at once.
    threading.Thread(target=lambda: (signal.sigwait(signals), os._exit(code)), daemon=True).start()
    try:
        _let_go()
    finally:
        # Not sys.exit: threads that sleep or sample would hold it up, and nothing that is left to do needs doing.
        os._exit(code)


def _let_go() -> None:
    _state.stop_requested = True
    # What fails from now on fails because it is torn down.
    logging.disable(logging.CRITICAL)
    cancel = _state.cancel
    if cancel is not None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            cancel()
            _state.ended.wait(GRACE_SECONDS)
    last_words = threading.Thread(target=_last_words, daemon=True)
    last_words.start()
    last_words.join(_LAST_WORDS_SECONDS)


def _last_words() -> None:
    try:
        for cleanup in _state.cleanups:
            cleanup()
        print(_state.last_line(), file=sys.stderr, flush=True)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody reads it
