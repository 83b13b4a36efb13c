"""A server on loopback answers nobody but programs of this machine and its own pages.

A browser carries requests of any page to any address, and a name that a stranger owns may point to 127.0.0.1. CORS
keeps such a page from reading answers, and that only over HTTP; here its requests and its websockets are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NO_FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
"""A page that shows the UI in a frame could have its visitor click there."""


class OwnAddress:
    """ASGI middleware: refuses (403) what asks under another name than its own, or comes from another server's page.

    Programs may also say `localhost`. Pages may not: a stranger's server may have the same port of localhost's other
    address, ::1. A browser that asks for a page there is sent to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._host, self._alias = f"127.0.0.1:{port}", f"localhost:{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if hosts not in ([self._host], [self._alias]) or origins not in ([], [f"http://{self._host}"]):
            await _refuse(scope, receive, send)
        elif hosts == [self._alias] and scope["type"] == "http" and _is_page(scope["path"]):
            await self._redirect(scope, receive, send)
        else:
            await self._app(scope, receive, _without_frames(send))

    async def _redirect(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import RedirectResponse

        query = scope["query_string"].decode("latin-1")
        path = f"{scope['path']}?{query}" if query else scope["path"]
        await RedirectResponse(f"http://{self._host}{path}")(scope, receive, send)


def _is_page(path: str) -> bool:
    """Whether it is the path of a page; what begins otherwise than with a slash would become a part of the host."""
    return path.startswith("/") and not path.startswith("/api/")


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import PlainTextResponse
    from starlette.websockets import WebSocketClose

    if scope["type"] == "websocket":
        await WebSocketClose(1008)(scope, receive, send)
    else:
        await PlainTextResponse("another address than this server's own\n", 403)(scope, receive, send)


def _without_frames(send: Send) -> Send:
    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_NO_FRAMES]}
        await send(message)

    return send_guarded
