"""One machine, one command: a Prefect server and its database, both work pools, a worker each, the deployments, the
automations.

`python -m prefect_regional_diffusion.deployments.up` (in a checkout: `make up`) starts what does not run yet; with
`--down` (`make down`) it stops all of it.
Everything listens on loopback, reports to nobody, and lives in one folder (`.regional/up` in the working directory)
that only this user may enter: database, logs, process files, and the auth string that the server asks everybody for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments.local_stack import (
    COMMAND,
    DATABASE,
    DATABASE_URLS,
    PARTS,
    POOLS,
    WORKERS,
    LocalStack,
)
from prefect_regional_diffusion.deployments.postgres import MEMORY_IS_HELD, DatabaseError, installed_programs
from prefect_regional_diffusion.flows.common.environment import set_defaults
from prefect_regional_diffusion.flows.server.environment import server_environment
from prefect_regional_diffusion.flows.server.local import SERVER, auth_file, make_auth_string, ports
from prefect_regional_diffusion.flows.server.private_files import NotPrivateError, private_folder
from prefect_regional_diffusion.tasks.machine.retry import Retry

_DEPLOYMENTS = Path(__file__).resolve().parent / "prefect.yaml"
_RELEASE_SECONDS = 10.0
"""For processes of a killed database to end: they notice it within a moment, unless the machine is busy."""


class StartError(Exception):
    """Something did not start; the message says what, and where its log is."""


def up(machine: LocalStack) -> None:
    """Start what does not run. Raises StartError."""
    private_folder(machine.folder)
    check_port(machine)
    auth_string = _auth_string(machine)
    environment = machine.environment(auth_string)
    os.environ.update(environment)
    database_url = start_database(machine)
    _start(
        machine,
        SERVER,
        [sys.executable, "-m", "prefect_regional_diffusion.deployments.server"],
        machine.server_environment(auth_string, database_url),
    )
    # It takes some ten seconds to answer, in which this process imports Prefect.
    from prefect_regional_diffusion.deployments.server_setup import set_up_server

    wait_for_server(machine)
    asyncio.run(set_up_server())
    print("pools, automations and blocks: set up", flush=True)
    # Before there are workers: after an update, a run that waits is started as the new code says.
    _deploy(machine, environment)
    for pool in POOLS:
        limit = ["--limit", "1"] if pool == "gpu" else []
        worker = [
            sys.executable,
            "-m",
            "prefect_regional_diffusion.deployments.worker",
            pool,
            "--name",
            f"{pool} here",
            *limit,
            *(["--plain"] if machine.plain else []),
        ]
        _start(machine, f"worker-{pool}", worker, environment)
    print(f"Prefect's UI: {machine.ui}   (logs: {machine.folder}/*.log)")
    print(f"This stops it, here or anywhere: {machine.down_command}")
    print(f"It asks once for the auth string, the line that this prints: cat {auth_file(machine.folder)}")


def start_database(machine: LocalStack) -> str | None:
    """The address of the PostgreSQL that was started, or runs; None where it is SQLite, or one that the user names.

    What a machine began with stays: its runs are there. Raises StartError.
    """
    if machine.sqlite or any(os.environ.get(name) for name in DATABASE_URLS):
        return None
    cluster = machine.cluster
    if not cluster.exists and (machine.sqlite_file.exists() or not cluster.fits):
        return None
    programs = installed_programs()
    if programs is None:
        if cluster.exists:
            problem = f"{cluster.folder} has this machine's runs, and PostgreSQL is not installed here any more"
            raise StartError(f"{problem}; --sqlite begins anew without them")
        return None
    environment = server_environment()

    def start_and_wait() -> None:
        _start(machine, DATABASE, cluster.server_command(programs), environment)
        asyncio.run(cluster.wait(lambda: processes.running(machine.folder, DATABASE) is not None))

    def is_held(_error: Exception) -> bool:
        return MEMORY_IS_HELD in processes.log_tail(machine.folder, DATABASE)

    try:
        cluster.create(programs, environment)
        Retry(_RELEASE_SECONDS, is_held, longest_pause=0.5).call(start_and_wait)
    except DatabaseError as error:
        log = processes.log_tail(machine.folder, DATABASE)
        raise StartError(f"PostgreSQL did not start (--sqlite does without): {error}\n{log}") from error
    return cluster.url


def _auth_string(machine: LocalStack) -> str:
    if processes.running(machine.folder, SERVER) is not None and not auth_file(machine.folder).exists():
        problem = f"{auth_file(machine.folder)} is gone, and the server still asks for it"
        raise StartError(f"{problem}: `{machine.down_command}` first")
    return make_auth_string(machine.folder)


def down(machine: LocalStack) -> None:
    """Stop what was started from this folder, and nothing else: workers first, they hand their runs back to the server.

    That holds for what no file knows any more, too.
    """

    def stop(part: str, polite: signal.Signals = signal.SIGTERM) -> None:
        stopped = processes.stop(machine.folder, part, polite)
        print(f"{part}: {'stopped' if stopped else 'was not running'}", flush=True)

    for worker in reversed(WORKERS):
        stop(worker)
    strays = processes.stop_strays(machine.folder, but=(SERVER, DATABASE))
    stop(SERVER)
    if machine.cluster.exists:
        # By SIGTERM it would wait for everybody who is connected, by SIGINT it ends their sessions.
        stop(DATABASE, signal.SIGINT)
    strays += processes.stop_strays(machine.folder)
    if strays:
        print(f"and {strays} processes that were left behind")


def check_port(machine: LocalStack) -> None:
    """Raise StartError where another's server would answer in the place of ours: it would get our pools and runs."""
    for part in PARTS:
        port = processes.port_of(machine.folder, part)
        if port not in (None, machine.port):
            raise StartError(
                f"{part} runs already, with port {port} and not {machine.port}: "
                f"`{machine.down_command}` first, or this with --port {port} (PREFECT_SERVER_API_PORT={port} make up)"
            )
    if processes.running(machine.folder, SERVER) is not None:
        return
    with socket.socket() as probe:
        # As the server itself does: connections of the last one may linger at the port, another's server may not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", machine.port))
        except (OSError, OverflowError) as error:
            advice = "choose another: --port 4310 (PREFECT_SERVER_API_PORT=4310 make up)"
            raise StartError(f"port {machine.port} is not free ({error}); {advice}") from error


def _start(machine: LocalStack, part: str, command: list[str], environment: dict[str, str]) -> None:
    started = processes.start(machine.folder, part, command, environment, Path.cwd(), machine.port)
    print(f"{part}: {'started' if started else 'runs already'}", flush=True)


def wait_for_server(machine: LocalStack, seconds: float = 180) -> None:
    """Until this folder's own server answers. Raises StartError if it does not, whoever else may answer."""

    def check_health() -> None:
        server = processes.running(machine.folder, SERVER)
        # Ours, and not one that was faster at the port: it will be sent the auth string.
        if server is None or machine.port not in ports(server):
            raise ConnectionRefusedError
        with urllib.request.urlopen(f"{machine.api}/health", timeout=2):  # noqa: S310 - loopback
            pass

    def is_transient(error: Exception) -> bool:
        alive = processes.running(machine.folder, SERVER) is not None
        return alive and isinstance(error, OSError | psutil.Error)

    try:
        Retry(seconds, is_transient, longest_pause=0.25).call(check_health)
    except (OSError, psutil.Error) as error:
        raise StartError(f"the server did not start:\n{processes.log_tail(machine.folder, SERVER)}") from error


def _deploy(machine: LocalStack, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with processes.private_log(machine.folder, "deploy") as log:
        log.truncate(0)
        process = subprocess.run(  # noqa: S603 - the command is spelled here
            [*command, "--prefect-file", str(_DEPLOYMENTS)],
            cwd=machine.folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o077,
            check=False,
        )
    if process.returncode:
        raise StartError(f"deploying failed:\n{processes.log_tail(machine.folder, 'deploy')}")
    print("deployments: set up", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--down", action="store_true", help="stop everything instead")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PREFECT_SERVER_API_PORT", "4200")))
    parser.add_argument("--folder", type=Path, default=Path(".regional/up"), help="database, logs, process files")
    parser.add_argument("--sqlite", action="store_true", help="SQLite, where PostgreSQL is installed, too")
    parser.add_argument("--plain", action="store_true", help="workers that start an interpreter for each run")
    arguments = parser.parse_args()
    machine = LocalStack(arguments.folder.resolve(), arguments.port, arguments.sqlite, arguments.plain)
    if arguments.down:
        down(machine)
        return
    # Runs of a worker are watched in the UI: there, logs are wanted.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "WARNING")
    # To wait for the GPU is nothing late; after Prefect's 15 s SQLite is locked while all that wait are marked at once.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS", "900")
    # Prefect plans an hour ahead: after a machine's sleep, all of the reaper's runs in it would be due at once.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME", "PT5M")
    # What runs tell of their tasks is written a moment later, together, and not event by event.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE", "100")
    # In whole seconds: of less than one, Prefect makes none, and the server looks for events without a pause.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL", "1")
    set_defaults()
    try:
        up(machine)
    except (StartError, NotPrivateError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
