"""Prefect's log lines of our runs: they repeat parameters, names and errors of libraries, and go to people's terminals,
to files of workers and to the server. Prefect writes them, so they are made plain where its handlers take them.
"""

from __future__ import annotations

import logging
import traceback

from prefect_regional_diffusion.sampling_core.text.plain_text import plain_lines
from prefect_regional_diffusion.tasks.machine.secrets import hide_keys

_LOGGERS = (None, "prefect", "prefect.flow_runs", "prefect.task_runs", "prefect.extra")
"""Those that Prefect gives handlers; None is the root, which our own loggers reach as well."""


class _PlainLines(logging.Filter):
    """Lets every record pass, without control characters and keys; lines after its first one are indented."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(record, "is_plain", False):  # several handlers take the same record
            hide_keys()
            record.msg, record.args = plain_lines(record.getMessage()), None
            if record.exc_info:
                # Formatters take the text where it is there already.
                record.exc_text = plain_lines("".join(traceback.format_exception(*record.exc_info)))
            record.is_plain = True
        return True


_FILTER = _PlainLines()


def make_logs_plain() -> None:
    """To be called by modules with flows: a worker's process imports nothing of ours before them."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if type(handler).__module__.startswith("prefect."):
                handler.addFilter(_FILTER)  # once, however often
