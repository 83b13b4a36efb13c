"""A Prefect server that refuses or does not answer, as one line for a person."""

from __future__ import annotations

import sys
from typing import Any

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.text.plain_text import plain, plain_address

_REFUSED = (409, 422)
_UNAUTHORIZED = (401, 403)


def explained(error: Exception) -> BadInput | None:
    """What to tell a person; None if the error is not one of talking to the server."""
    if "prefect.settings" not in sys.modules:
        return None  # nobody has asked a server
    import httpx
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    address = PREFECT_API_URL.value()
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in _UNAUTHORIZED:
            given = "…" if PREFECT_API_AUTH_STRING.value() else None
            return BadInput(
                "PREFECT_API_AUTH_STRING", given, f"the auth string of the server at {plain_address(address)}"
            )
        if status in _REFUSED:
            return BadInput("parameters", f"HTTP {status}", f"what the server takes ({_reason(error.response)})")
        return BadInput("PREFECT_API_URL", address, f"a server that answers (HTTP {status})")
    if isinstance(error, httpx.TransportError | httpx.InvalidURL) or str(error).startswith("Failed to reach API"):
        return BadInput("PREFECT_API_URL", address, "the address of a Prefect server that answers")
    return None


def _reason(response: Any) -> str:
    """The server's own words, without the input that it repeats."""
    try:
        answer = response.json()
        details = answer.get("exception_detail") or answer.get("detail") or answer
        first = details[0] if isinstance(details, list) else details
        words = first["msg"] if isinstance(first, dict) and "msg" in first else str(first)
    except (ValueError, LookupError, AttributeError):
        words = "no reason given"
    return plain(words, 200)
