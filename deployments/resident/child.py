"""A forked process becomes that of a run, and executes it as `python -m prefect.engine` does."""

from __future__ import annotations

import atexit
import os
import random
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

from prefect_regional_diffusion.deployments.resident.handoff import Request

_RUN_ID = "PREFECT__FLOW_RUN_ID"


class Child:
    """One run, for the hand-off at the other end of a connection."""

    def __init__(self, connection: socket.socket, request: Request, streams: list[int]) -> None:
        self._connection, self._request, self._streams = connection, request, streams
        self._code = 1

    def run(self) -> NoReturn:
        """Execute the run when the hand-off says so, and end."""
        self._connection.settimeout(None)
        first = self._connection.recv(1)
        if not first:
            os._exit(0)  # the hand-off has given up waiting: it runs the run itself
        self._become()
        threading.Thread(target=self._follow, args=[first], name="hand-off", daemon=True).start()
        try:
            code = run_engine()
        except BaseException:  # noqa: BLE001 - as Python does, where a program ends
            traceback.print_exc()
            code = 1
        # What Python does at the end of a program, but for the destruction of all modules: that takes a second.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        with suppress(OSError):
            self._connection.sendall(b"ending %d\n" % code)
        os._exit(code)

    def _become(self) -> None:
        os.setsid()
        for number, stream in enumerate(self._streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(self._request.cwd)
        sys.argv, sys.path[0] = ["prefect.engine"], self._request.cwd
        os.environ.update(self._request.environment)
        random.seed()
        np.random.seed()
        # What `ps` and `top` call it, at most 15 characters: its environment is not to be seen there.
        Path("/proc/self/comm").write_text(f"run-{os.environ.get(_RUN_ID, '')[:8]}")

    def _follow(self, first: bytes) -> None:
        """Give this process the signals that the hand-off gets, and die with it."""
        numbers = first
        while numbers:
            for number in numbers:
                if number:
                    os.kill(os.getpid(), number)
            try:
                numbers = self._connection.recv(64)
            except OSError:
                break
        os.killpg(0, signal.SIGKILL)


def run_engine() -> int:
    """`python -m prefect.engine` in this process; returns its exit code. Raises what the engine does not handle."""
    # Prefect has imported it; it is to run as a program of its own.
    sys.modules.pop("prefect.engine", None)
    return code_of(lambda: runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True))


def code_of(program: Callable[[], object]) -> int:
    """The exit code with which a program would end. Raises what it raises."""
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
