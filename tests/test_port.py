"""`make up` never sets up a server that it did not start: who has the port is looked at first, without a server."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments.local_stack import LocalStack
from prefect_regional_diffusion.deployments.up import StartError, up
from tests.processes import free_port


class StartedError(Exception):
    """In the place of everything that `up` does once the port is known to be ours."""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Mock:
    start = Mock(side_effect=StartedError)
    monkeypatch.setattr("prefect_regional_diffusion.deployments.up.processes.start", start)
    return start


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """A server of somebody else's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.fixture
def running() -> Iterator[Callable[..., None]]:
    """Makes a process, with its file, that stands for a part which `up` has started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, part: str, **facts: object) -> None:
        marks = {processes.OWNER_TAG: str(folder), processes.PART: part}
        telling = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
        process = subprocess.Popen(telling, env=os.environ | marks, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it is there, with its environment
        identity = {"pid": process.pid, **processes.birth(process.pid), **facts}
        (folder / f"{part}.json").write_text(json.dumps(identity))
        if part == "server":
            (folder / "auth").write_text("admin:secret\n")

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_strangers_server_is_left_alone(tmp_path: Path, stranger: socket.socket, start: Mock) -> None:
    with pytest.raises(StartError, match=rf"^port {port_of(stranger)} is not free .*; choose another: --port ") as told:
        up(LocalStack(tmp_path, port_of(stranger), sqlite=True))
    assert not start.called
    assert "\n" not in str(told.value)


def test_a_port_that_does_not_exist_is_one_line(tmp_path: Path, start: Mock) -> None:
    with pytest.raises(StartError, match=r"^port 70000 is not free"):
        up(LocalStack(tmp_path, 70000, sqlite=True))
    assert not start.called


def test_connections_of_the_last_server_do_no_harm(tmp_path: Path, stranger: socket.socket, start: Mock) -> None:
    """Who closes first waits (TIME_WAIT), for a minute."""
    port = port_of(stranger)
    client = socket.create_connection(("127.0.0.1", port))
    served, _ = stranger.accept()
    served.close()
    client.close()
    stranger.close()
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind(("127.0.0.1", port))
    with pytest.raises(StartedError):
        up(LocalStack(tmp_path, port, sqlite=True))


def test_our_own_server_keeps_its_port(
    tmp_path: Path, stranger: socket.socket, start: Mock, running: Callable[..., None]
) -> None:
    running(tmp_path, "server", port=port_of(stranger))
    with pytest.raises(StartedError):
        up(LocalStack(tmp_path, port_of(stranger), sqlite=True))


@pytest.mark.parametrize("part", ["server", "worker-gpu"])
def test_another_port_than_the_one_in_use_is_refused(
    part: str, tmp_path: Path, start: Mock, running: Callable[..., None]
) -> None:
    """Workers, too, go on asking where they were told to."""
    running(tmp_path, part, port=4200)
    wanted = free_port()
    down = f"python -m prefect_regional_diffusion.deployments.up --down --folder {tmp_path}"
    with pytest.raises(
        StartError, match=rf"^{part} runs already, with port 4200 and not {wanted}: `{re.escape(down)}` first"
    ) as told:
        up(LocalStack(tmp_path, wanted, sqlite=True))
    assert not start.called
    assert "\n" not in str(told.value)


def test_what_ran_before_a_reboot_has_no_port(tmp_path: Path, start: Mock, running: Callable[..., None]) -> None:
    running(tmp_path, "server", port=4200, boot="another")
    with pytest.raises(StartedError):
        up(LocalStack(tmp_path, free_port(), sqlite=True))


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # so that it outlives us
def test_a_process_is_found_with_its_port(tmp_path: Path) -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    try:
        assert processes.start(tmp_path, "server", sleeping, os.environ, tmp_path, port=4310)
        assert processes.port_of(tmp_path, "server") == 4310
    finally:
        processes.stop(tmp_path, "server")
    assert processes.port_of(tmp_path, "server") is None
