"""What a run measures, told to its worker while it happens: what a process had told before it was killed is counted.

A worker that is asked for metrics names a Unix socket in the environment of its runs. One connection is one start of a
run; its end is the run's, however that comes. Without a socket, or a worker that listens, nothing is told.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator, Hashable
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import Literal

from prefect_regional_diffusion.tasks.machine.task import in_flow_run

SOCKET = "REGIONAL_METRICS_SOCKET"
"""Environment variable: the path of the worker's socket."""

_SECONDS = 1.0
"""For a worker to take a message: one that hangs must not hold up a run."""

Name = Literal[
    "wanted_pictures",
    "pictures",
    "outcome",
    "queue_wait_seconds",
    "steps",
    "evaluations",
    "canvas_evaluations",
    "forwards",
    "sampling_seconds",
    "work_seconds",
    "model_loads",
    "model_load_seconds",
    "model_hits",
    "run_peak_memory_bytes",
]
"""What can be told; `deployments.metrics.series` says of each what it is, and which labels it has."""


class _Connection:
    """To the worker; silent once that has not listened."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SECONDS)
        self.used = set[Hashable]()
        self._lock = Lock()  # threads that sample and that load tell, too
        with suppress(OSError):
            self._socket.connect(path)

    def tell(self, name: Name, value: float, label: str) -> None:
        try:
            with self._lock:
                self._socket.sendall(json.dumps([name, label, value]).encode() + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        self._socket.close()


_connection: ContextVar[_Connection | None] = ContextVar("metrics", default=None)


def tell(name: Name, value: float, label: str = "") -> None:
    """Count or observe something of the run that is measured in this context, if there is one."""
    connection = _connection.get()
    if connection is not None:
        connection.tell(name, value, label)


def is_first_use(key: Hashable) -> bool:
    """Whether the run that is measured in this context has not asked so with that key before."""
    connection = _connection.get()
    if connection is None or key in connection.used:
        return False
    connection.used.add(key)
    return True


@contextmanager
def measured_run(pictures: int) -> Generator[None]:
    """Measure what a run does within the block: a start of a run that is to make so many pictures.

    It has failed if the block raises an exception, and was interrupted if its process ends in it.
    """
    path = os.environ.get(SOCKET)
    if not path:
        yield
        return
    from prefect_regional_diffusion.tasks.machine.peak_memory import PeakMemory

    connection, memory = _Connection(path), PeakMemory()
    token = _connection.set(connection)
    try:
        tell("wanted_pictures", pictures)
        _tell_wait()
        try:
            yield
        finally:
            for kind, size in memory.bytes().items():
                tell("run_peak_memory_bytes", size, kind)
    except Exception:
        tell("outcome", 1, "failed")
        raise
    else:
        tell("outcome", 1, "finished")
    finally:
        _connection.reset(token)
        connection.close()


def _tell_wait() -> None:
    """How long a deployment's run was due before it began; of a run that is started again, nobody knows since when."""
    if not in_flow_run():
        return
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run and run.deployment_id and run.expected_start_time and run.run_count <= 1:
        began = run.start_time.timestamp() if run.start_time else time.time()
        tell("queue_wait_seconds", max(began - run.expected_start_time.timestamp(), 0.0))
