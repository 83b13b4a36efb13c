"""A command in a terminal of its own, and a person who presses Ctrl-C there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.forked import Forked
from tests.processes import living

MARK = "PYTHON_TEST_OF_STOPPING"  # servers of ours are given none but such
"""An environment variable by which everything that a command starts is found."""


class Terminal:
    """A process in the foreground of a pseudo-terminal, which reads all that it shows.

    It is forked from one that has imported the libraries; with `whole_start`, it begins as a person's command does.
    """

    def __init__(
        self, command: list[str], cwd: Path, env: dict[str, str], mark: str, *, whole_start: bool = False
    ) -> None:
        self.mark, self.shown = mark, b""
        self._keys, inner = pty.openpty()
        self.process: Forked | subprocess.Popen[bytes]
        env = env | {MARK: mark, "TERM": "xterm", "COLUMNS": "500"}
        if whole_start:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=inner,
                stdout=inner,
                stderr=inner,
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
        else:
            self.process = Forked(command, cwd=cwd, env=env, stdin=inner, stdout=inner, stderr=inner, terminal=True)
        os.close(inner)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            select.select([self._keys], [], [])
            try:
                data = os.read(self._keys, 65536)
            except OSError:  # nobody has the other side open
                return
            if not data:
                return
            self.shown += data

    def press_ctrl_c(self) -> None:
        """As a person does: the terminal sends SIGINT to the whole foreground group."""
        os.write(self._keys, b"\x03")

    def wait(self, seconds: float) -> int:
        """The exit code; fails the test after `seconds`."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"it did not end within {seconds} s:\n{self.text}") from None
        self._reader.join(5)
        return code

    def close(self) -> None:
        """End everything that the command has started."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._reader.join(5)
        os.close(self._keys)

    def processes(self) -> list[psutil.Process]:
        """The command, while it runs, and everything that it has started."""
        commands = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        marked = living(lambda process: process.environ().get(MARK) == self.mark)
        return commands + [process for process in marked if process not in commands]

    @property
    def text(self) -> str:
        """What a person reads, without colours and movements of the cursor."""
        plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self.shown).decode(errors="replace")
        return "\n".join(line.rpartition("\r")[2] for line in plain.replace("\r\n", "\n").split("\n"))

    def until(self, event: str, check: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert self.process.poll() is None, f"it ended before {event}:\n{self.text}"
            assert time.monotonic() < deadline, f"waited in vain for {event}:\n{self.text}"
            time.sleep(0.02)

    def listens(self) -> bool:
        """Whether the command has begun: it blocks SIGINT, which a thread of it waits for."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGINT - 1) & 1)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Whoever runs tests in the background ignores it, and that is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
