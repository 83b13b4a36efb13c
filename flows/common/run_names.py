"""What runs are called in the UI."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run

from prefect_regional_diffusion.sampling_core.text.plain_text import one_line

MOST_NAME = 80
"""Characters of a run's name that somebody chose."""


def named_after(flow: str) -> Callable[[], str]:
    """The flow and its parameter `name`; asked for when a run begins."""
    return lambda: f"{flow} {one_line((flow_run.parameters or {}).get('name', ''), MOST_NAME)}".strip()
