"""Real processes for tests: the command line and a Prefect server, each with a home of its own."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from tests.made_once import made_once

if TYPE_CHECKING:
    from tests.forked import Forked

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def environment(prefect_home: Path, api: str | None = None) -> dict[str, str]:
    """This process' environment without its Prefect settings, with a fresh Prefect home."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REGIONAL_"))}
    variables |= {"PREFECT_HOME": str(prefect_home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return variables | ({"PREFECT_API_URL": api} if api else {})


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """All living processes that were started with an environment variable, but this one."""

    def has(process: psutil.Process) -> bool:
        return process.pid != os.getpid() and process.environ().get(name) == value

    return living(has)


def processes_of(run_id: str) -> list[psutil.Process]:
    """The living processes of a flow run: that which executes it comes first, and then its hand-off, if there is one.

    A forked process does not show its environment; it has a name.
    """
    forked = living(lambda process: process.name() == f"run-{run_id[:8]}")
    return [*forked, *with_variable("PREFECT__FLOW_RUN_ID", run_id)]


def waiting_for_runs(worker: psutil.Process) -> list[psutil.Process]:
    """The living processes below a worker that have drawn, and have their models in memory for the next run."""
    return living(lambda process: process.name() == "waits-for-runs", worker.children(recursive=True))


def living(
    holds: Callable[[psutil.Process], bool], among: Iterable[psutil.Process] | None = None
) -> list[psutil.Process]:
    """Those processes, of all or of some, that live and of which something holds: not those that end while it looks."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter() if among is None else among:
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and holds(process):
                found.append(process)
    return found


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not yet asked for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def regional(*arguments: object) -> list[str]:
    """The command line as users run it."""
    return [str(Path(sys.executable).parent / "regional"), *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect_server(home: Path, **variables: str) -> Generator[str]:
    """A Prefect server on loopback, with further environment variables; yields its API address.

    It is `prefect server start`, forked from a process that has imported what that imports.
    """
    from tests.forked import Forked

    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in variables:
        prefect_database(home)
    command = [sys.executable, "-W", "ignore", "-c", "from prefect.cli import app; app()"]
    command += ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = Forked(command, cwd=home, env=environment(home) | variables, stdout=log, stderr=log)
    try:
        _wait_for(f"{api}/health", server, home / "server.log")
        yield api
    finally:
        stop(server)


@made_once
def prefect_database(home: Path) -> str:
    """A Prefect home with an empty SQLite database: its hundreds of migrations take longer than a server's start."""
    command = [str(Path(sys.executable).parent / "prefect"), "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)
    return str(home)


def stop(process: subprocess.Popen[bytes] | Forked) -> None:
    """End a process, politely at first.

    Prefect's worker turns SIGTERM into SIGINT, which whoever is started in a shell's background ignores.
    """
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(url: str, server: Forked, log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"the Prefect server did not start:\n{log.read_text()[-3000:]}")


def ask(url: str, body: Any = None, method: str = "POST") -> Any:
    """Ask a Prefect server; again where SQLite keeps it busy (503, or no answer), as Prefect's own client does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return _ask(url, body, method)
        except OSError as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code != 503
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(1)


def post(api: str, path: str, body: Any) -> Any:
    """What a Prefect server answers to a question."""
    return ask(f"{api}/{path}", body)


auth_files: dict[str, Path] = {}
"""The files of the auth strings of servers that ask for one, by the beginnings of their APIs' addresses."""

_CSRF_CLIENT = uuid4().hex


def credentials(url: str) -> dict[str, str]:
    """Headers that show a server of `make up` who asks: none for other servers."""
    for api, file in auth_files.items():
        if url.startswith(f"{api}/") and file.exists():
            basic = "Basic " + base64.b64encode(file.read_bytes().strip()).decode()
            # It holds for an hour.
            token = _csrf_token(api, basic, int(time.monotonic() // 1200))
            return {"Authorization": basic, "Prefect-Csrf-Client": _CSRF_CLIENT, "Prefect-Csrf-Token": token}
    return {}


@lru_cache
def _csrf_token(api: str, basic: str, _period: int) -> str:
    request = urllib.request.Request(f"{api}/csrf-token?client={_CSRF_CLIENT}", headers={"Authorization": basic})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())["token"]


def _ask(url: str, body: Any, method: str) -> Any:
    try:
        return _ask_once(url, body, method)
    except urllib.error.HTTPError as error:
        if error.code != 403:
            raise
        # To a server whose clock was stepped, the token is too old.
        _csrf_token.cache_clear()
        return _ask_once(url, body, method)


def _ask_once(url: str, body: Any, method: str) -> Any:
    headers = {"Content-Type": "application/json"} | credentials(url)
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")
