"""The server of one command is for that command alone: others get in neither from a page nor as a local program."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from prefect_regional_diffusion.flows.server.temporary import TemporaryServer

pytestmark = pytest.mark.e2e

KEYS = {"AWS_SECRET_ACCESS_KEY": "aws-secret", "REGIONAL_S3_SECRET": "s3-secret", "HF_TOKEN": "hf-secret"}


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryServer]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server = TemporaryServer()
    yield server
    process = server._process  # pyright: ignore[reportPrivateUsage]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="module")
def api(server: TemporaryServer) -> str:
    return server.address()


def status(url: str, headers: dict[str, str], body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_asks_for_what_only_its_command_knows(server: TemporaryServer, api: str) -> None:
    assert status(f"{api}/admin/settings", {}) == 401
    assert status(f"{api}/admin/settings", {"Authorization": "Basic YWRtaW46cGFzcw=="}) == 401
    for body in ({}, []):
        question = {"Content-Type": "application/json"}
        assert status(f"{api}/flow_runs/filter", question, json.dumps(body).encode()) == 403
    assert server.auth_string.startswith("admin:")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": ""}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
    ids=lambda headers: "-".join(next(iter(headers.items()))),
)
def test_no_page_gets_in(headers: dict[str, str], api: str) -> None:
    assert status(f"{api}/health", {}) == 200
    assert status(f"{api}/health", headers) in (400, 403)


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_no_page_gets_a_websocket(path: str, api: str) -> None:
    url = f"{api.replace('http:', 'ws:')}/{path}"
    with pytest.raises(InvalidStatus, match="403"):
        connect(url, origin=Origin("http://evil.example"), proxy=None)


def test_it_has_no_keys(server: TemporaryServer, api: str) -> None:
    process = psutil.Process(server._process.pid)  # pyright: ignore[reportPrivateUsage]
    environment = process.environ()
    assert not {name for name, value in environment.items() if value in KEYS.values()}
    assert server.auth_string not in environment.values()
    assert server.auth_string not in " ".join(process.cmdline())
