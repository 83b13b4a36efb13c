"""What is used of Prefect 3.8 without being its public interface; `tests/test_resident_runs.py` says what of it."""

from __future__ import annotations

from prefect import engine, flow_engine
from prefect._internal.concurrency.services import (
    QueueService,
    _QueueServiceBase,  # pyright: ignore[reportPrivateUsage]
)
from prefect._internal.concurrency.threads import get_global_loop
from prefect.runner._flow_run_executor import FlowRunExecutorContext
from prefect.runner._starter_engine import EngineCommandStarter

ServiceBase = _QueueServiceBase
"""Of all services, those that collect what they send, too."""

__all__ = [
    "EngineCommandStarter",
    "FlowRunExecutorContext",
    "QueueService",
    "ServiceBase",
    "engine",
    "flow_engine",
    "get_global_loop",
]
