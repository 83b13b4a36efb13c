"""Reports of loading: to the listener of a command, and in a flow run to Prefect's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.machine.task import in_flow_run

_MOST = 200


class Load(NamedTuple):
    """Something that is read into memory: what people call it, its bytes there, and the seconds that it took.

    None: it has begun.
    """

    what: str
    bytes: int
    seconds: float | None

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.1f} MB"
        description = f"{plain(self.what, _MOST)} ({size})"
        return f"loading {description}" if self.seconds is None else f"loaded {description} in {self.seconds:.1f} s"


LoadListener = Callable[[Load], None]

load_listener: ContextVar[LoadListener | None] = ContextVar("load_listener", default=None)


@contextmanager
def report_load(what: str, size: int) -> Generator[None]:
    """Report that something of so many bytes is loaded within the block: when it begins, and once it is there."""
    _tell(Load(what, size, None))
    started = time.monotonic()
    yield
    _tell(Load(what, size, time.monotonic() - started))


def _tell(load: Load) -> None:
    listener = load_listener.get()
    if listener is not None:
        listener(load)
    if load.seconds is not None and in_flow_run():
        from prefect.logging import get_run_logger

        get_run_logger().info("%s", str(load))
