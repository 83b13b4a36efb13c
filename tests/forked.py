"""Commands as processes of their own that need not import the libraries: forked by `tests/fork_server.py`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tests.processes import ROOT, environment, regional

Stream = IO[Any] | int


class Forked:
    """A process, with what tests use of `subprocess.Popen`. The command is `regional ...` or `python -c CODE ...`.

    Streams are files or descriptors; without one, the process reads nothing and says nothing.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = subprocess.DEVNULL,
        terminal: bool = False,
    ) -> None:
        """`terminal`: standard input is one, and becomes the controlling terminal of a new session."""
        self.args, self.returncode = list(map(str, command)), None
        self._report, report_end = os.pipe()
        request = {"command": self.args, "cwd": str(cwd), "env": dict(env), "terminal": terminal}
        with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - a descriptor
            streams = [
                nothing.fileno()
                if stream == subprocess.DEVNULL
                else stream
                if isinstance(stream, int)
                else stream.fileno()
                for stream in (stdin, stdout, stderr)
            ]
            try:
                server = _server()
                socket.send_fds(server, [json.dumps(request).encode()], [*streams, report_end])
                self.pid = int(server.recv(100))
            finally:
                os.close(report_end)

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], seconds)[0]:
            report = os.read(self._report, 100)
            os.close(self._report)
            assert report, "the fork server has ended"
            self.returncode: int | None = int(report)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def __del__(self) -> None:
        if self.returncode is None and hasattr(self, "pid"):
            os.close(self._report)


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], seconds: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return what it said."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Forked(command, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = process.wait(seconds)
        finally:
            process.kill()
        outputs = []
        for stream in (out, err):
            stream.seek(0)
            outputs.append(stream.read())
        return subprocess.CompletedProcess(process.args, code, *outputs)


def render_json(arguments: Sequence[object], cwd: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Run `regional render ... --json` and return the object it printed; fails the test on any other output."""
    process = run(regional("render", *arguments, "--json"), cwd=cwd, env=env)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@lru_cache(maxsize=1)
def _server() -> socket.socket:
    """The connection to this process' fork server, which ends when this process does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = Path(tempfile.mkdtemp(prefix="fork-server-"))  # it removes that itself at its end
    command = [sys.executable, "-W", "ignore", "-m", "tests.fork_server", str(its.fileno())]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(home), stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
    )
    its.close()

    def end() -> None:
        ours.close()
        server.wait(30)

    atexit.register(end)
    assert ours.recv(100) == b"ready", "the fork server did not start"
    return ours
