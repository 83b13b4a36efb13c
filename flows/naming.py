"""What runs are called in the UI."""

from __future__ import annotations

from collections.abc import Callable

from prefect.context import FlowRunContext


def named_after(flow: str) -> Callable[[], str]:
    """The flow and its parameter `name`; asked for when a run begins."""

    def run_name() -> str:
        context = FlowRunContext.get()
        parameters = (context.parameters if context is not None else None) or {}
        return f"{flow} {parameters.get('name', '')}".strip()

    return run_name
