"""What is used of Prefect 3.8 without being its public interface; `tests/test_resident_runs.py` says what of it."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

from prefect import engine, flow_engine
from prefect._internal.concurrency.services import (
    QueueService,
    _QueueServiceBase,  # pyright: ignore[reportPrivateUsage]
)
from prefect._internal.concurrency.threads import get_global_loop
from prefect.client import orchestration
from prefect.runner._flow_run_executor import FlowRunExecutorContext
from prefect.runner._starter_engine import EngineCommandStarter

ServiceBase = _QueueServiceBase
"""Of all services, those that collect what they send, too."""


def share_tls_contexts() -> None:
    """Have Prefect's clients share what they need for TLS, in this process and those that are forked from it.

    Each would read all certificates of authorities anew, also for a server without TLS: 30 ms, a dozen times in a run.
    """
    shared = SimpleNamespace(**vars(ssl) | {"create_default_context": cache(ssl.create_default_context)})
    setattr(orchestration, "ssl", shared)  # noqa: B010 - its type is that of a module
    with suppress(OSError):  # a run will meet it, and say so
        orchestration.PrefectClient("http://127.0.0.1/api")


__all__ = [
    "EngineCommandStarter",
    "FlowRunExecutorContext",
    "QueueService",
    "ServiceBase",
    "engine",
    "flow_engine",
    "get_global_loop",
    "orchestration",
    "share_tls_contexts",
]
