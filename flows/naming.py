"""What runs are called in the UI."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run


def named_after(flow: str) -> Callable[[], str]:
    """The flow and its parameter `name`; asked for when a run begins."""
    return lambda: f"{flow} {(flow_run.parameters or {}).get('name', '')}".strip()
