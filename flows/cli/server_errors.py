"""A Prefect server that refuses or does not answer, as one line for a person."""

from __future__ import annotations

import sys
from typing import Any

from prefect_regional_diffusion.flows.server.errors import server_error
from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError
from prefect_regional_diffusion.sampling_core.text.plain_text import plain

_REFUSED = (409, 422)
_UNAUTHORIZED = (401, 403)


def explained(error: Exception) -> RegionalError | None:
    """The error in the words for a person; None if it is not an error of a request to the server."""
    if "prefect.settings" not in sys.modules:
        return None  # nobody has asked a server
    import httpx
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in _UNAUTHORIZED:
            problem = "does not accept" if PREFECT_API_AUTH_STRING.value() else "asks for an auth string: set"
            return server_error(f"{problem} PREFECT_API_AUTH_STRING (HTTP {status})")
        if status in _REFUSED:
            return server_error(f"refuses the parameters: {_reason(error.response)} (HTTP {status})")
        return server_error(f"answers with HTTP {status}")
    if isinstance(error, httpx.InvalidURL):
        return BadInput("PREFECT_API_URL", PREFECT_API_URL.value(), "the address of a Prefect server")
    if isinstance(error, httpx.TransportError) or str(error).startswith("Failed to reach API"):
        return server_error("does not answer")
    return None


def _reason(response: Any) -> str:
    """The server's own words, without the input that it repeats."""
    try:
        body = response.json()
        details = body.get("exception_detail") or body.get("detail") or body
        first = details[0] if isinstance(details, list) else details
        reason = first["msg"] if isinstance(first, dict) and "msg" in first else str(first)
    except (ValueError, LookupError, AttributeError):
        reason = "no reason given"
    return plain(reason, 200)
