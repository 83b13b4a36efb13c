"""The process of the server of `make up`: Prefect's own server, on 127.0.0.1, for its own address alone."""

from __future__ import annotations

import sys


def main() -> None:
    """Serve until a signal. Port and auth string are Prefect's settings, in its environment."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from prefect_regional_diffusion.deployments.token_requests import OneTokenAtATime
    from prefect_regional_diffusion.flows.server.address_guard import OwnAddress

    settings = get_current_settings()
    api = settings.server.api
    # Prefect takes an empty one, and then lets everybody in.
    if api.auth_string is None or not api.auth_string.get_secret_value():
        sys.exit("PREFECT_SERVER_API_AUTH_STRING: missing; this server starts with one alone")
    uvicorn.run(
        OwnAddress(OneTokenAtATime(create_app(final=True)), api.port),
        host="127.0.0.1",
        port=api.port,
        proxy_headers=False,
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        log_level=settings.server.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
