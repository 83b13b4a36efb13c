"""Clients of the server of `make up` get their CSRF tokens one after the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OneTokenAtATime:
    """ASGI middleware: a request for a CSRF token waits for the one before it.

    A token lasts an hour. For a new one, Prefect first replaces the client's own row and then deletes all that are too
    old, other clients' own rows among them: on PostgreSQL, clients that ask at once wait for each other (deadlock),
    as all do when a machine has slept. Each such wait ends after a second, for one of them with an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._lock = app, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/csrf-token"):
            async with self._lock:
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)
