"""A proxy in front of an S3 server that can be told to fail as networks and object stores do."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Literal

from tests.processes import free_port

Fault = Literal["none", "refused", "busy", "silent"]
"""No connection at all; every answer is 503; requests are taken and never answered."""

_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 81\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>\n"
)


class FaultProxy:
    """Listens on loopback and passes bytes on to `target`, unless `fault` says otherwise."""

    def __init__(self, target: int) -> None:
        self._target, self.port = target, free_port()
        self.fault: Fault = "none"
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        assert started.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: Fault) -> None:
        """From now on every connection meets this fault; those that are open are cut."""
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
            if self.fault == "none":
                await self._pass_on(reader, writer)
            elif self.fault == "busy":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_BUSY)
                await writer.drain()
            elif self.fault == "silent":
                await reader.read(-1)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        self._open.add(there)
        try:
            await asyncio.gather(_pumped(reader, there), _pumped(there_reader, writer))
        finally:
            self._open.discard(there)
            there.close()


async def _pumped(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
    with suppress(OSError):
        sink.close()
