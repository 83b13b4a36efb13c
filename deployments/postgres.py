"""A PostgreSQL cluster of one's own for the server of `make up`: in its folder, at a Unix socket alone, without root.

SQLite has one writer at a time, and refuses a write of a transaction that has read before another one wrote: the
server then answers 503, and on a busy machine that was every second submission from the UI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from prefect_regional_diffusion.tasks.machine.retry import Retry

_ROLE = "prefect"
_DATABASE = "postgres"
_INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian has the programs that are not on the path: a folder for each version."""
_NOT_ROOT = ("unshare", "--map-user=65534", "--map-group=65534")
"""PostgreSQL refuses to run as root: it runs in a user namespace, where root has another number (Linux alone)."""
_LONGEST_SOCKET = 100
"""Bytes of a socket's path; the system's limit is 103 to 107."""

MEMORY_IS_HELD = "pre-existing shared memory block"
"""In the log of a start that was refused: processes of a server that was killed still have the cluster's memory. A
cluster of ours writes its log in English (`--no-locale`)."""


class DatabaseError(Exception):
    """The database did not start; the message says why."""


@dataclass(frozen=True)
class Programs:
    """PostgreSQL as it is installed here."""

    folder: Path
    prefix: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.folder / program), *arguments]


@cache
def installed_programs() -> Programs | None:
    """The newest PostgreSQL here that can run Prefect's server as this user; None if there is none."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    versions = (path for path in _INSTALLED.glob("*/bin") if path.parent.name.isdecimal())
    folders += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    prefix = _NOT_ROOT if os.geteuid() == 0 else ()
    if prefix and _output([*prefix, "true"]) is None:
        return None
    for folder in folders:
        programs = Programs(folder, prefix)
        # Prefect's tables need the extension, which some systems have in a package of its own.
        shown = _output(programs.command("initdb", "--show", "-D", "unused"))
        share = re.search(r"^share_path=(.+)$", shown or "", re.MULTILINE)
        if (folder / "postgres").exists() and share and Path(share[1], "extension/pg_trgm.control").exists():
            return programs
    return None


def _output(command: Sequence[str]) -> str | None:
    """What a command says on both streams; None if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the command is spelled here
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class Cluster:
    """A cluster in a folder that only this user may enter: who reaches its socket is let in without a password."""

    folder: Path

    @property
    def exists(self) -> bool:
        return (self.folder / "PG_VERSION").exists()

    @property
    def fits(self) -> bool:
        """Whether the system has room for the socket's path."""
        return len(os.fsencode(self.folder / ".s.PGSQL.5432")) <= _LONGEST_SOCKET

    @property
    def url(self) -> str:
        """Prefect's PREFECT_SERVER_DATABASE_CONNECTION_URL."""
        return f"postgresql+asyncpg://{_ROLE}@/{_DATABASE}?host={quote(str(self.folder), safe='')}"

    def create(self, programs: Programs, environment: Mapping[str, str]) -> None:
        """Make the cluster where there is none; one whose making was cut short is made anew. Raises DatabaseError."""
        if self.exists:
            return
        unfinished = self.folder.with_name(f"{self.folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        options = ["--no-locale", "--encoding=UTF8", "--auth=trust", f"--username={_ROLE}"]
        done = subprocess.run(  # noqa: S603 - the command is spelled here
            programs.command("initdb", "-D", str(unfinished), *options),
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
        )
        if done.returncode:
            raise DatabaseError(done.stderr.strip())
        unfinished.rename(self.folder)

    def server_command(self, programs: Programs) -> list[str]:
        """The command that serves it, at a socket in its folder and at no port."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "unix_socket_permissions": "0700",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return programs.command("postgres", "-D", str(self.folder), *options)

    async def wait(self, is_running: Callable[[], bool], seconds: float = 60) -> None:
        """Until it answers. Raises DatabaseError once its process has ended, or after those seconds."""
        import asyncpg

        def is_transient(error: Exception) -> bool:
            return is_running() and isinstance(error, OSError | asyncpg.PostgresError)

        async def connect() -> None:
            connection = await asyncpg.connect(host=str(self.folder), user=_ROLE, database=_DATABASE, timeout=10)
            await connection.close()

        try:
            await Retry(seconds, is_transient, longest_pause=0.25).acall(connect)
        except (OSError, asyncpg.PostgresError) as error:
            raise DatabaseError(str(error)) from error
