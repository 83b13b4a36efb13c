"""The worker's side: a private Unix socket to which its runs tell what they measure.

A connection is one start of a run. What it tells is added once, when it comes: a run that is killed has counted what it
had done, and the start that goes on counts the rest.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from prefect_regional_diffusion.deployments.metrics.series import ENDS, Series

_BACKLOG = 256


class Collector:
    """Listens in a thread of its own, for as long as this object is not closed."""

    def __init__(self, series: Series) -> None:
        """Raises OSError where there can be no socket."""
        self._series = series
        # Nobody else may enter it.
        self._folder = Path(tempfile.mkdtemp(prefix="regional-metrics-"))
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self.path)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._clean_up()
            raise
        self._loop, self._closed = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """Of its socket."""
        return str(self._folder / "runs")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._hear, sock=self._listener)
        await self._closed.wait()
        server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = RunStart(self._series)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                start.hear(line)
        except (OSError, ValueError):
            pass  # it was killed, or it is none of ours: a line as long as none
        finally:
            start.end()
            writer.close()

    def close(self) -> None:
        """Hear no more."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()
        self._clean_up()

    def _clean_up(self) -> None:
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class RunStart:
    """What one start of a run tells."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._pictures_left = 0
        self._outcome = "interrupted"
        series.runs_in_progress.inc()

    def hear(self, line: bytes) -> None:
        """Add what a line says; one that says nothing of ours changes nothing."""
        try:
            name, label, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return
        is_number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        if is_number and isinstance(name, str) and isinstance(label, str):
            self._add(name, label, value)

    def _add(self, name: str, label: str, value: float) -> None:
        if name == "wanted_pictures":
            self._pictures_left = int(value)
        elif name == "outcome" and label in ENDS:
            self._outcome = label
        elif self._series.add(name, label, value) and name == "pictures":
            self._pictures_left -= int(value)

    def end(self) -> None:
        """The connection has ended, and with it the run, whatever it was: what it has not said, it cannot say."""
        self._series.runs_in_progress.dec()
        self._series.add("runs", self._outcome, 1)
        self._series.add("pictures", self._outcome, max(self._pictures_left, 0))
