"""A Prefect server for the flow runs of one command, where none is configured: private, and gone when the command is.

It is a process in a session of its own, so that no key press reaches it, with a folder of its own, so that nothing is
left in the user's home. It reads a pipe whose other end only the command holds: first the auth string, which nobody
else knows, then nothing. When it is closed, by whatever ended the command, the server removes its folder and ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from prefect_regional_diffusion.flows.server.address_guard import OwnAddress
from prefect_regional_diffusion.flows.server.environment import server_environment
from prefect_regional_diffusion.flows.server.local import new_auth_string
from prefect_regional_diffusion.sampling_core.errors import ServerError

_OUR_SETTINGS = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
}


class TemporaryServer:
    """A server that begins to start when this is made; it ends with this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "prefect_regional_diffusion.flows.server.temporary"]
        self.auth_string = new_auth_string()
        # Neither pipe is closed before this process ends: the server's end would follow.
        self._process = subprocess.Popen(  # noqa: S603 - this very package
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=server_environment(),
            start_new_session=True,
            umask=0o077,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self.auth_string + "\n")
        self._process.stdin.flush()

    def address(self) -> str:
        """The address of its API, once it answers (about ten seconds). Raises ServerError if it does not start."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line.startswith("http://"):
            raise ServerError("Prefect server", "of this command", "did not start: `prefect server start` says why")
        return line


def serve() -> None:
    """The server's own process: says its address on stdout when it is ready, and ends when stdin does."""
    # The command that starts this has them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    auth_string = sys.stdin.buffer.readline().decode().strip()
    folder = Path(tempfile.mkdtemp(prefix="regional-server-"))
    threading.Thread(target=_end_with_stdin, args=(folder,), daemon=True).start()
    # What the user has set is meant for other servers, and may name their database.
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    private_settings = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_API_AUTH_STRING": auth_string}
    os.environ.update(_OUR_SETTINGS | private_settings)
    # A file `prefect.toml` or `.env` in the user's folder would count as well.
    os.chdir(folder)
    try:
        _run_server()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_stdin(folder: Path) -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _run_server() -> None:
    # Late: by then the thread above watches.
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"http://127.0.0.1:{port}/api", flush=True)

    with socket.socket() as server_socket:
        server_socket.bind(("127.0.0.1", 0))
        port = int(server_socket.getsockname()[1])
        app = OwnAddress(create_app(ephemeral=True, final=True), port)
        config = uvicorn.Config(app, log_level="critical", lifespan="on", proxy_headers=False)
        Server(config).run(sockets=[server_socket])


if __name__ == "__main__":
    serve()
