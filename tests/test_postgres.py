"""The database of `make up`: which one it is, and a PostgreSQL of its own that survives its kill."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any
from unittest.mock import Mock

import asyncpg
import psutil
import pytest

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments import up as up_module
from prefect_regional_diffusion.deployments.local_stack import DATABASE, LocalStack
from prefect_regional_diffusion.deployments.postgres import Cluster, Programs, installed_programs
from prefect_regional_diffusion.deployments.up import StartError, start_database

# What is started here outlives who starts it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
needs_postgres = pytest.mark.skipif(installed_programs() is None, reason="needs PostgreSQL")


@pytest.fixture
def no_postgres(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """PostgreSQL is not installed."""
    asked = Mock(return_value=None)
    monkeypatch.setattr(up_module, "installed_programs", asked)
    return asked


def test_without_postgres_it_is_sqlite(tmp_path: Path, no_postgres: Mock) -> None:
    assert start_database(LocalStack(tmp_path, 4310)) is None
    assert no_postgres.called


@pytest.mark.parametrize("name", ["PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL"])
def test_a_database_that_the_user_names_is_taken(
    name: str, tmp_path: Path, no_postgres: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+asyncpg://prefect@db.example/prefect"
    monkeypatch.setenv(name, url)
    machine = LocalStack(tmp_path, 4310)
    assert start_database(machine) is None
    assert not no_postgres.called
    assert machine.server_environment("admin:secret", None)[name] == url


def test_runs_that_are_in_sqlite_stay_in_sight(tmp_path: Path, no_postgres: Mock) -> None:
    machine = LocalStack(tmp_path, 4310)
    machine.sqlite_file.parent.mkdir()
    machine.sqlite_file.touch()
    assert start_database(machine) is None
    assert not no_postgres.called


def test_runs_that_are_in_a_postgres_that_is_gone_are_not_forgotten_silently(tmp_path: Path, no_postgres: Mock) -> None:
    machine = LocalStack(tmp_path, 4310)
    machine.cluster.folder.mkdir()
    (machine.cluster.folder / "PG_VERSION").touch()
    with pytest.raises(StartError, match=r"PostgreSQL is not installed here any more; --sqlite begins anew"):
        start_database(machine)
    assert start_database(LocalStack(tmp_path, 4310, sqlite=True)) is None


def test_a_folder_whose_name_is_too_long_for_a_socket_has_sqlite(tmp_path: Path, no_postgres: Mock) -> None:
    assert start_database(LocalStack(tmp_path / ("x" * 100), 4310)) is None
    assert not no_postgres.called


def test_a_start_that_fails_says_so_with_the_log_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program, code in (
        ("initdb", 'mkdir "$2"; touch "$2/PG_VERSION"'),
        ("postgres", "echo no shared memory; exit 1"),
    ):
        (tmp_path / program).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(up_module, "installed_programs", lambda: Programs(tmp_path))
    (tmp_path / "up").mkdir()
    with pytest.raises(StartError, match=r"^PostgreSQL did not start \(--sqlite does without\)(.|\n)*no shared memory"):
        start_database(LocalStack(tmp_path / "up", 4310))


@contextmanager
def served(machine: LocalStack) -> Generator[str]:
    """A machine's database, from its start to its end."""
    url = start_database(machine)
    assert url is not None
    try:
        yield url
    finally:
        processes.stop(machine.folder, DATABASE, signal.SIGINT)


def answer(cluster: Cluster, query: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(host=str(cluster.folder), user="prefect", database="postgres")
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(ask())


@needs_postgres
def test_what_is_written_survives_a_kill_and_a_stop(tmp_path: Path) -> None:
    """One whose making was cut short is made anew."""
    machine = LocalStack(tmp_path, 4310)
    (tmp_path / "postgres.unfinished").mkdir()
    (tmp_path / "postgres.unfinished" / "PG_VERSION").touch()
    with served(machine):
        answer(machine.cluster, "CREATE TABLE runs AS SELECT 1 AS done")
        server = processes.running(tmp_path, DATABASE)
        assert server is not None
        children = server.children()
        # On a busy machine they notice late that their server was killed; until then no other one may start.
        children[0].suspend()
        server.kill()
        psutil.wait_procs([server], timeout=10)
        late = Timer(2, children[0].resume)
        late.start()
        with served(machine):
            assert not late.is_alive(), "it was to start only then"
            assert answer(machine.cluster, "SELECT count(*) FROM runs") == 1
    assert processes.running(tmp_path, DATABASE) is None
    with served(machine):
        assert answer(machine.cluster, "SELECT count(*) FROM runs") == 1


@needs_postgres
def test_nobody_else_reaches_it(tmp_path: Path) -> None:
    """Who reaches the socket is let in: only this user does. There is no port, and folder and socket are private."""
    machine = LocalStack(tmp_path, 4310)
    with served(machine):
        server = processes.running(tmp_path, DATABASE)
        assert server is not None
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # some of a database's processes are short
                assert not process.net_connections("inet")
        folder, socket = machine.cluster.folder.stat(), (machine.cluster.folder / ".s.PGSQL.5432").stat()
        assert (folder.st_uid, stat.S_IMODE(folder.st_mode)) == (os.geteuid(), 0o700)
        assert (socket.st_uid, stat.S_IMODE(socket.st_mode)) == (os.geteuid(), 0o700)


@needs_postgres
def test_who_is_connected_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    machine = LocalStack(tmp_path, 4310)

    async def stop_beside_a_session() -> float:
        connection = await asyncpg.connect(host=str(machine.cluster.folder), user="prefect", database="postgres")
        began = time.monotonic()
        processes.stop(tmp_path, DATABASE, signal.SIGINT)
        connection.terminate()
        return time.monotonic() - began

    with served(machine):
        assert asyncio.run(stop_beside_a_session()) < 30
        assert processes.running(tmp_path, DATABASE) is None
