"""Loggers of this package: a message is one line, whatever names and errors are in it."""

from __future__ import annotations

import logging
from typing import Any

from prefect_regional_diffusion.sampling_core.text.plain_text import plain

_MOST = 600


class PlainLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose messages are made plain when they are whole: keys in them, line ends, control characters."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            message = str(msg) % args if args else str(msg)
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            self.logger.log(level, "%s", plain(message, _MOST), **kwargs)


def plain_logger(name: str) -> PlainLogger:
    """In the place of `logging.getLogger`."""
    return PlainLogger(logging.getLogger(name), {})
