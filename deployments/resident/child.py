"""A forked process becomes that of a run, and executes it as `python -m prefect.engine` does.

One that may take more runs waits for the next one with its models in memory, unless a run has ended in another way than
well, or another process waits for the device that they are on.
"""

from __future__ import annotations

import atexit
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from prefect_regional_diffusion.deployments.resident.handoff import READY, Request, close_all, receive_request
from prefect_regional_diffusion.deployments.resident.held_models import write_held

if TYPE_CHECKING:
    from prefect_regional_diffusion.deployments.resident.renewal import ProcessState

_RUN_ID = "PREFECT__FLOW_RUN_ID"
DESCRIPTORS = 4
"""That come with a run for a child which waits for one: its streams, and the connection to its hand-off."""


class Run(NamedTuple):
    """A run, and the connection to its hand-off."""

    connection: socket.socket
    request: Request
    streams: list[int]


class Child:
    """A process that executes a run, and as many more as it may."""

    def __init__(self, run: Run, more: socket.socket | None, most_runs: int, folder: str) -> None:
        """`more` is where other runs come from, and where it is told that this one has ended; None: there are none.

        In `folder` it is written what is in memory while this process waits.
        """
        self._run, self._more, self._runs_left, self._folder = run, more, most_runs, folder
        self._finished = threading.Event()

    def run(self) -> NoReturn:
        """Execute runs, and end."""
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        state = _state() if self._more else None
        while True:
            self._begin()
            try:
                code, is_well = copy_context().run(run_engine)
            except BaseException:  # noqa: BLE001 - as Python does, where a program ends
                traceback.print_exc()
                code, is_well = 1, False
            self._finished.set()
            self._runs_left -= 1
            if state is None or not is_well or not self._runs_left or not state.restore():
                self._end(code)
            self._wait_for_next()

    def _begin(self) -> None:
        """Become the process of the run, once its hand-off says so."""
        connection, request, streams = self._run
        connection.settimeout(None)
        with suppress(OSError):
            connection.sendall(READY)
        first = connection.recv(1)
        if not first:
            os._exit(0)  # the hand-off has given up waiting: it runs the run itself
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        close_all(streams)
        os.chdir(request.cwd)
        sys.argv, sys.path[0] = ["prefect.engine"], request.cwd
        os.environ.update(request.environment)
        random.seed()
        self._finished = threading.Event()
        # What `ps` and `top` call it, at most 15 characters: its environment is not to be seen there.
        _call_process(f"run-{os.environ.get(_RUN_ID, '')[:8]}")
        follow = threading.Thread(
            target=_follow, args=(connection, first, self._finished), name="hand-off", daemon=True
        )
        follow.start()

    def _end(self, code: int) -> NoReturn:
        """What Python does at the end of a program, but for the destruction of all modules: that takes a second."""
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        self._tell_end(code)
        os._exit(code)

    def _tell_end(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        with suppress(OSError):
            self._run.connection.sendall(b"ending %d\n" % code)

    def _wait_for_next(self) -> None:
        assert self._more is not None
        write_held(self._folder, _names_held())
        self._tell_end(0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.close(nothing)
        # Not only closed: a thread is reading from it.
        with suppress(OSError):
            self._run.connection.shutdown(socket.SHUT_RD)
        self._run.connection.close()
        _call_process("waits-for-runs")
        try:
            self._more.sendall(b"\0")
            if _is_device_wanted(self._more):
                # A run that has been sent already is taken; no other one can be sent any more.
                self._more.shutdown(socket.SHUT_RD)
            request, descriptors = receive_request(self._more, DESCRIPTORS)
        except (OSError, ValueError):
            os._exit(0)  # nobody has more
        *streams, connection = descriptors
        self._run = Run(socket.socket(fileno=connection), request, streams)


def _state() -> ProcessState:
    from prefect_regional_diffusion.deployments.resident.renewal import ProcessState

    return ProcessState()


def _names_held() -> frozenset[str]:
    from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts

    return loaded_parts().names


def _is_device_wanted(more: socket.socket) -> bool:
    """Wait until there is something to read, or another process wants the device; returns whether that is so."""
    from prefect_regional_diffusion.tasks.machine.device_lock import device_lock

    lock = device_lock.socket
    return lock is not None and lock in select.select([more, lock], (), ())[0]


def _call_process(name: str) -> None:
    Path("/proc/self/comm").write_text(name)


def _follow(connection: socket.socket, first: bytes, finished: threading.Event) -> None:
    """Give this process the signals that the hand-off of a run gets, and let it die with that."""
    numbers = first
    while numbers:
        for number in numbers:
            if number:
                os.kill(os.getpid(), number)
        try:
            numbers = connection.recv(64)
        except OSError:
            break
    if not finished.is_set():
        os.killpg(0, signal.SIGKILL)


def run_engine() -> tuple[int, bool]:
    """`python -m prefect.engine` in this process; see `ending`."""
    # Prefect has imported it; it is to run as a program of its own.
    sys.modules.pop("prefect.engine", None)
    return ending(lambda: runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True))


def ending(program: Callable[[], object]) -> tuple[int, bool]:
    """The exit code of a program, and whether it came to its end: engines of failed, cancelled and paused runs exit.

    Raises what it raises.
    """
    try:
        program()
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else int(end.code is not None)), False
    return 0, True
