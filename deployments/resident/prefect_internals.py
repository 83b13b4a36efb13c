"""What is used of Prefect 3.8 without being its public interface; `tests/test_resident_runs.py` says what of it."""

from __future__ import annotations

from prefect import engine, flow_engine
from prefect._internal.concurrency.services import QueueService
from prefect.runner._flow_run_executor import FlowRunExecutorContext
from prefect.runner._starter_engine import EngineCommandStarter

__all__ = ["EngineCommandStarter", "FlowRunExecutorContext", "QueueService", "engine", "flow_engine"]
