"""The environment of a Prefect server that we start: what it needs, and no keys of stores and other services."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = {
    "DO_NOT_TRACK",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
}
_PREFIXES = ("DYLD_", "LC_", "LD_", "PREFECT_", "PYTHON")
_CLIENT_CREDENTIALS = {"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"}
"""Credentials that clients send to a server: the server itself needs none of them."""


def server_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The part of an environment that a server needs."""
    return {
        name: value
        for name, value in environment.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and name not in _CLIENT_CREDENTIALS
    }
