"""The keeper's side: the socket of a resident process, and the process itself, which is started again when it ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_BACKLOG = 256
_SHORTEST_LIFE = 60
"""Seconds: a process that ends sooner is started again after a while only, for it may do so again."""
_LONGEST_PAUSE = 60.0


class Resident:
    """A resident process, for as long as this object is not closed."""

    def __init__(self, most_runs: int) -> None:
        """`most_runs`: of one child, one after the other. Raises OSError where there can be no socket."""
        self._most_runs = most_runs
        # Nobody else may enter it; whoever may send to the socket has code run as this user.
        self._folder = Path(tempfile.mkdtemp(prefix="regional-worker-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._pipe = os.pipe()
        self._pause, self._due = 1.0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._listener.bind(self.path)
            self._listener.listen(_BACKLOG)
        except OSError:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Of its socket."""
        return str(self._folder / "runs")

    def ensure_running(self) -> None:
        """Start it if it does not run; requests wait meanwhile, for as long as they have patience."""
        now = time.monotonic()
        if self._process is None:
            self._start(now)
        elif self._process.poll() is not None:
            if self._due == 0:
                lived = now - self._started
                self._pause = 1.0 if lived > _SHORTEST_LIFE else min(2 * self._pause, _LONGEST_PAUSE)
                self._due = now + self._pause
                print(
                    f"The resident process ended with code {self._process.returncode}; it is started again.", flush=True
                )
            elif now >= self._due:
                self._start(now)

    def _start(self, now: float) -> None:
        listener, end = self._listener.fileno(), self._pipe[0]
        self._started, self._due = now, 0.0
        self._process = subprocess.Popen(  # noqa: S603 - the command is spelled below
            command(listener, end, self._most_runs), pass_fds=[listener, end], start_new_session=True
        )

    def close(self) -> None:
        """End it. Its children go on for as long as their hand-offs do."""
        self._listener.close()
        for end in self._pipe:
            os.close(end)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._process is not None:
            # It may be importing, and would notice the end of the pipe only then.
            self._process.terminate()
            self._process.wait()


def is_possible() -> bool:
    """Whether processes can be forked and looked at as `parent` does it."""
    return sys.platform == "linux"


def command(listener: int, keeper: int, most_runs: int) -> list[str]:
    """The command of a resident process. It has two descriptors: a listening socket, and the end of a pipe.

    A child of it takes at most `most_runs`, one after the other.
    """
    module = "prefect_regional_diffusion.deployments.resident.parent"
    return [sys.executable, "-m", module, *map(str, (listener, keeper, most_runs))]
