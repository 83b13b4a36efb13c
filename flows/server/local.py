"""The server of `make up`: which process of this user it is, and the auth string that it asks for."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from prefect_regional_diffusion.flows.server.private_files import MOST_BYTES, open_private, read_private

OWNER_TAG = "REGIONAL_UP"
"""Environment variable that everything started from a folder carries, their children too: that folder."""

PART = "REGIONAL_UP_PART"
"""Environment variable with the name of what was started, of the same processes."""

SERVER = "server"
"""Its name among the parts."""


def auth_file(folder: Path) -> Path:
    """Where the server of a folder keeps its auth string; the file's mode is 0600."""
    return folder / "auth"


def new_auth_string() -> str:
    """192 random bits after a name, as HTTP's basic authentication has it."""
    return f"admin:{secrets.token_urlsafe(24)}"


def make_auth_string(folder: Path) -> str:
    """The auth string of a folder, which is made if there is none. Raises OSError if the file cannot be trusted."""
    path = auth_file(folder)
    with os.fdopen(open_private(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        # Of two that begin at once, the second one waits, and finds what the first one has written.
        fcntl.flock(file, fcntl.LOCK_EX)
        os.fchmod(file.fileno(), 0o600)
        if not file.read(MOST_BYTES).strip():
            file.seek(0)
            file.write(f"{new_auth_string()}\n".encode())
            file.truncate()
    return read_private(path).strip()


def auth_string_of(url: str) -> str | None:
    """The auth string for an API on 127.0.0.1; None unless the server of this user's own `make up` listens there.

    No other server at that port gets it.
    """
    address = urlsplit(url)
    if address.scheme != "http" or address.hostname != "127.0.0.1":
        return None
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            if process.uids().real != os.getuid():
                continue
            environment = process.environ()
            if environment.get(PART) == SERVER and OWNER_TAG in environment and address.port in ports(process):
                return read_private(auth_file(Path(environment[OWNER_TAG]))).strip()
    return None


def ports(process: psutil.Process) -> set[int]:
    """The ports at which a process listens on 127.0.0.1. Raises psutil.Error."""
    return {
        connection.laddr.port
        for connection in process.net_connections("tcp4")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == "127.0.0.1"
    }


def use_auth_string() -> None:
    """Let Prefect's client show the auth string of our own server, unless the user has set one."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    if not api.url or api.auth_string is not None:
        return
    # By name, a stranger's server at ::1 might be asked instead.
    url = api.url.replace("//localhost:", "//127.0.0.1:", 1)
    auth_string = auth_string_of(url)
    if auth_string is not None:
        os.environ |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth_string}
        refresh_global_settings_context()
