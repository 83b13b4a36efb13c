"""The server, database and workers of one machine: their folder, addresses and environments."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from prefect_regional_diffusion.deployments.postgres import Cluster
from prefect_regional_diffusion.flows.server.environment import server_environment
from prefect_regional_diffusion.flows.server.local import SERVER

COMMAND = "python -m prefect_regional_diffusion.deployments.up"
"""What `make up` calls: who has installed the package alone has no Makefile."""
POOLS = ("control", "gpu")
WORKERS = tuple(f"worker-{pool}" for pool in POOLS)
DATABASE = "database"
PARTS = (SERVER, *WORKERS)
"""What runs on every machine; the database is a process of its own where PostgreSQL is installed."""
DATABASE_URLS = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


@dataclass(frozen=True)
class LocalStack:
    """Where this machine's server listens and keeps its things."""

    folder: Path
    port: int
    sqlite: bool = False
    """Whether SQLite is insisted on, whatever is installed."""
    plain: bool = False
    """Whether its workers have no resident process."""

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.folder / "postgres")

    @property
    def sqlite_file(self) -> Path:
        return self.folder / "prefect" / "prefect.db"

    @property
    def ui(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def down_command(self) -> str:
        """What stops it, from wherever it is typed: `make down` knows one folder alone, and a checkout has it."""
        return f"{COMMAND} --down --folder {shlex.quote(str(self.folder))}"

    @property
    def api(self) -> str:
        return f"{self.ui}/api"

    def server_environment(self, auth_string: str, database_url: str | None) -> dict[str, str]:
        """The server's environment: its settings, and of this process' only what a server needs."""
        database = {DATABASE_URLS[0]: database_url} if database_url else {}
        server_settings = {
            **database,
            # This sets the port for the UI as well; with `server start --port` alone it would ask at 4200.
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_API_AUTH_STRING": auth_string,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.ui,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Kept in memory, claims to a deployment's limit are lost with the server, and then their runs.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        return {**server_environment(), **self._shared(), **server_settings}

    def environment(self, auth_string: str) -> dict[str, str]:
        """The environment of whoever talks to the server: this process' own, with its address and auth string."""
        client_settings = {
            "PREFECT_API_AUTH_STRING": auth_string,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        return {**os.environ, **self._shared(), **client_settings}

    def _shared(self) -> dict[str, str]:
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "DO_NOT_TRACK": "1",
        }
