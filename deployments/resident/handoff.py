"""The process that a worker starts for a run: it hands the run to a resident process and ends as the run ends.

`python -I -S handoff.py SOCKET`: the standard library alone, so that it takes a hundredth of the time of an engine's
start. To the worker it is the run's process: it has the run's environment, passes signals on, and the run dies with it.
Where nobody serves the run it becomes what Prefect would have started, `prefect.engine`.

Over the socket: a `Request` with three descriptors; the answer `ready` (of the child) or `no` (of its parent); then a
byte for "go", and one for each signal. The child says `ending CODE` as its last act, its parent `ended CODE` once it is
dead; a negative code is a signal. So the code is known, too, if the parent has died meanwhile; whoever dies without a
word was killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

PATIENCE = 180.0
"""Seconds for an answer: a resident process that starts anew imports the libraries first."""
STREAMS = (0, 1, 2)
READY, NO = b"ready\n", b"no\n"
GO = b"\0"
_LENGTH = struct.Struct("!I")
_LONGEST = 1 << 22
"""Bytes of a request. The kernel allows an environment of 2 MB."""
_CREDENTIALS = struct.Struct("3i")


class Request(NamedTuple):
    """What a process needs to be the run's: its environment and working directory; streams come beside it."""

    environment: dict[str, str]
    cwd: str


def is_own(connection: socket.socket) -> bool:
    """Whether the other side is a process of this user."""
    answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(answer)
    return user == os.getuid()


def send_request(connection: socket.socket, request: Request, descriptors: Sequence[int] = STREAMS) -> None:
    """Send it, with descriptors. Raises OSError."""
    text = json.dumps(request).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(text))], descriptors)
    connection.sendall(text)


def receive_request(connection: socket.socket, descriptors: int = len(STREAMS)) -> tuple[Request, list[int]]:
    """The request, and as many descriptors with it. Raises OSError, ValueError or TypeError for anything else."""
    header, received, _, _ = socket.recv_fds(connection, _LENGTH.size, descriptors)
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    try:
        if len(received) == descriptors:
            return Request(*json.loads(_text(connection, header))), received
    except BaseException:
        close_all(received)
        raise
    close_all(received)
    raise ValueError("descriptors are missing")


def _text(connection: socket.socket, header: bytes) -> bytes:
    if len(header) != _LENGTH.size or not 0 < (length := _LENGTH.unpack(header)[0]) <= _LONGEST:
        raise ValueError("no request")
    text = bytearray()
    while len(text) < length:
        part = connection.recv(length - len(text))
        if not part:
            raise ValueError("half a request")
        text += part
    return bytes(text)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def main(path: str) -> None:
    connection = _accepted(path)
    if connection is None:
        os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])  # noqa: S606 - what Prefect starts
    else:
        _end_as(_code_of_run(connection))


def _accepted(path: str) -> socket.socket | None:
    """The connection to the process that now runs the run; None where there is none."""
    connection = socket.socket(socket.AF_UNIX)

    def pass_on(number: int, _frame: object) -> None:
        with suppress(OSError):
            connection.send(bytes([number]))

    try:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        if not is_own(connection):
            return None
        send_request(connection, Request(dict(os.environ), os.getcwd()))  # noqa: PTH109 - faster
        if connection.recv(16) != READY:
            connection.close()
            return None
        connection.settimeout(None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        connection.sendall(GO)
    except OSError:
        # Nothing was begun: without "go" the child ends.
        connection.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        return None
    return connection


def _code_of_run(connection: socket.socket) -> int:
    code = -signal.SIGKILL.value
    with connection.makefile("rb") as words:
        for line in words:
            word, number = line.split()
            code = int(number)
            if word == b"ended":
                break
    return code


def _end_as(code: int) -> None:
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
