"""A proxy in front of an S3 server that can be told to fail as networks and object stores do."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from tests.processes import free_port

Refusal = Literal["SlowDown", "RequestTimeTooSkewed", "ExpiredToken", "AccessDenied"]
"""Every request is answered with this error code of S3."""

Fault = Literal["none", "refused", "silent", "dated", "cut", "short"] | Refusal
"""Beside refusals:

- `refused`: no connection at all.
- `silent`: requests are taken and never answered.
- `dated`: a request whose date is not now gets RequestTimeTooSkewed, as from S3 itself; others pass.
- `cut`: of what a GET asks for the first half arrives, then the connection breaks.
- `short`: a state that is read is half of it, with a length that fits and no checksum: only who knows its content sees
  the damage.
"""

_REFUSALS: dict[Fault, tuple[str, str]] = {
    "SlowDown": ("503 Slow Down", "Please reduce your request rate."),
    "RequestTimeTooSkewed": (
        "403 Forbidden",
        "The difference between the request time and the current time is too large.",
    ),
    "ExpiredToken": ("403 Forbidden", "The provided token has expired."),
    "AccessDenied": ("403 Forbidden", "Access Denied"),
}
_MOST_SKEW_SECONDS = 15 * 60
_STATE = re.compile(rb"GET \S*/latents/\S+\.safetensors ")


class FaultProxy:
    """Listens on loopback and passes bytes on to `target`, unless `fault` says otherwise."""

    def __init__(self, target: int) -> None:
        self._target, self.port = target, free_port()
        self.fault: Fault = "none"
        self.met = 0
        """Requests (where none is read: connections) that the present fault, or the last one, has hit."""
        self._most: int | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        assert started.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: Fault, most: int | None = None) -> None:
        """From now on every connection meets this fault, and `most` requests at most; those that are open are cut."""
        if fault != "none":
            self.met, self._most = 0, most
        self.fault = fault
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._open:
            writer.close()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        started.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            match self.fault:
                case "none":
                    await self._pass_on(b"", reader, writer)
                case "refused":
                    self.met += 1
                case "silent":
                    self.met += 1
                    await reader.read(-1)
                case fault:
                    await self._serve_one(fault, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve_one(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then close: so a connection never has requests of another fault's time."""
        head = await reader.readuntil(b"\r\n\r\n")
        if not self._hits(fault, head):
            await self._pass_on(_closing(head), reader, writer)
            return
        self.met += 1
        if fault in ("cut", "short"):
            writer.write(_halved(await self._answer(_closing(head)), honest=fault == "cut"))
        else:
            # Closed with something unread, a connection is reset, and the answer may be lost.
            length = _header(head, b"content-length")
            if length and _header(head, b"expect") is None:
                await reader.readexactly(int(length))
            writer.write(_refusal("RequestTimeTooSkewed" if fault == "dated" else fault))
        await writer.drain()

    def _hits(self, fault: Fault, head: bytes) -> bool:
        if self._most is not None and self.met >= self._most:
            return False
        match fault:
            case "dated":
                return _skew_seconds(head) > _MOST_SKEW_SECONDS
            case "cut":
                return head.startswith(b"GET ")
            case "short":
                return _STATE.match(head) is not None
            case _:
                return True

    async def _answer(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            writer.write(request)
            return await reader.read(-1)
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect both ends; `head` are the bytes that were read already."""
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._open.add(target_writer)
        try:
            target_writer.write(head)
            await asyncio.gather(_pumped(reader, target_writer), _pumped(target_reader, writer))
        finally:
            self._open.discard(target_writer)
            target_writer.close()


async def _pumped(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
    with suppress(OSError):
        sink.close()


def _header(head: bytes, name: bytes) -> bytes | None:
    match = re.search(rb"\r\n" + name + rb":[ \t]*([^\r]*)", head, re.IGNORECASE)
    return None if match is None else match.group(1)


def _without(head: bytes, names: bytes) -> bytes:
    """The head of a message without some headers and without the empty line."""
    return re.sub(rb"\r\n(?:" + names + rb"):[^\r]*", b"", head, flags=re.IGNORECASE).removesuffix(b"\r\n\r\n")


def _closing(head: bytes) -> bytes:
    """A request after whose answer the server closes the connection."""
    return _without(head, rb"connection|keep-alive") + b"\r\nConnection: close\r\n\r\n"


def _halved(answer: bytes, *, honest: bool) -> bytes:
    """An answer with the first half of its body; honest: with the length that the whole one has."""
    head, _, body = answer.partition(b"\r\n\r\n")
    half = body[: len(body) // 2]
    if not honest:
        head = _without(head, rb"content-length|content-md5|x-amz-checksum-[^:\r]*")
        head += b"\r\nContent-Length: %d" % len(half)
    return head + b"\r\n\r\n" + half


def _refusal(code: Fault) -> bytes:
    status, message = _REFUSALS[code]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>\n'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def _skew_seconds(head: bytes) -> float:
    """How far the date of a request is from now, in seconds; 0 for one without a date."""
    date = _header(head, b"x-amz-date")
    if date is None:
        return 0.0
    date_sent = datetime.strptime(date.decode(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return abs((datetime.now(UTC) - date_sent).total_seconds())
