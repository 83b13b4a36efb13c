"""The keys that this process has been given: no message repeats them. Without torch, which takes seconds to import."""

from __future__ import annotations

import os
import sys

from prefect_regional_diffusion.sampling_core.text.plain_text import hide, plain

_KEYS = (
    *("REGIONAL_S3_KEY", "REGIONAL_S3_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"),
)
_ADDRESSES = ("REGIONAL_STORE", "REGIONAL_OUT", "REGIONAL_S3_ENDPOINT", "AWS_ENDPOINT_URL", "PREFECT_API_URL")
"""Variables that are keys, and those that may have a password in them."""


def hide_keys() -> None:
    """Register this process' keys for redaction: errors of libraries are shown, and repeat their arguments."""
    keys = [os.environ.get(name, "") for name in _KEYS]
    addresses = [os.environ.get(name, "") for name in _ADDRESSES]
    # Where nobody has imported it, nobody has its keys.
    if "prefect.settings" in sys.modules:
        from prefect.settings import get_current_settings

        api = get_current_settings().api
        keys += [key.get_secret_value() for key in (api.key, api.auth_string) if key is not None]
        addresses.append(str(api.url))
    # Of a user and a password with a colon between them, the password alone as well.
    hide([*keys, *(key.partition(":")[2] for key in keys)], addresses)


def reason_of(error: Exception) -> str:
    """An error of a library in one short line, without the keys that it may repeat."""
    hide_keys()
    return plain(f"{type(error).__name__}: {error}", 160)
