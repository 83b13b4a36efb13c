"""Attacks on a real server and a real worker: each is refused with its reason, and does nothing on the way."""

from __future__ import annotations

import io
import shutil
import threading
import time
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from tests.forked import render_json, run
from tests.planting import pickled
from tests.pool_worker import deployed, worker
from tests.processes import EXAMPLES, environment, post, prefect_server, regional

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("server")]
JOB = next(path for path in EXAMPLES if path.stem == "two_halves")


@pytest.fixture(scope="module")
def deployment(server: str) -> str:
    """The address at which runs of the flow `render` are submitted, in a pool of its own."""
    return f"deployments/{deployed(server, 'attacked')}/create_flow_run"


@pytest.fixture
def at_work(server: str, deployment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of a worker that draws them."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("worker")
    with worker("attacked", folder, environment(home, server)):
        yield folder


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A service in the worker's network: its address, and the requests that reached it."""
    asked: list[str] = []

    class Hears(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    service = HTTPServer(("127.0.0.1", 0), Hears)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}", asked
    service.shutdown()
    thread.join()
    service.server_close()


def finished(api: str, run: str) -> dict[str, Any]:
    """The run when it has ended."""
    found = dict[str, Any]()
    for _ in range(480):
        found = post(api, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})[0]
        if found["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
            return found
        time.sleep(0.5)
    raise AssertionError(f"the run did not end: {found}")


@pytest.mark.timeout(900)
def test_what_comes_over_the_server(
    server: str, deployment: str, at_work: Path, listener: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Paths out, requests into the network, secrets: the run fails with one line that says why.

    These are one of each kind; tests/test_trust.py has all spellings.
    """
    address, asked = listener
    Image.new("L", (64, 64), 255).save(tmp_path / "secret.png")
    (at_work / "link.png").symlink_to(tmp_path / "secret.png")
    (at_work / "taken").symlink_to(tmp_path)

    def masked(mask: str) -> dict[str, Any]:
        return {"job": {"prompt": "fog", "regions": [{"prompt": "a red circle", "mask": {"image": mask}}]}}

    plain = {"job": {"prompt": "fog", "steps": 1}}
    attacks: list[tuple[dict[str, Any], str, str]] = [
        (masked("link.png"), "regions.0.mask.image: ", "REGIONAL_ASSET_ROOTS"),
        (masked(f"{address}/mask.png"), "regions.0.mask.image: ", "REGIONAL_ASSET_ROOTS"),
        (plain | {"store": "s3://KEY:hunter2@bucket"}, "store: ", "a URL without credentials"),
        (plain | {"out": "taken/out"}, "out: ", "REGIONAL_ALLOWED_OUTPUTS"),
    ]
    before = sorted(tmp_path.rglob("*"))
    runs = [post(server, deployment, {"parameters": parameters})["id"] for parameters, *_ in attacks]
    named = post(server, deployment, {"parameters": plain | {"name": "../../../escaped"}})["id"]
    for run_id, (parameters, field, reason) in zip(runs, attacks, strict=True):
        ended = finished(server, run_id)
        assert ended["state_type"] == "FAILED", parameters
        message = ended["state"]["message"]
        assert f"BadInput: {field}" in message
        assert reason in message
        assert "hunter2" not in message
    assert asked == []
    assert sorted(tmp_path.rglob("*")) == before
    # A run's name is part of a file's name, and nothing more.
    assert finished(server, named)["state_type"] == "COMPLETED"
    assert next((at_work / "renders").glob("*.png")).name.startswith("escaped-")


def test_parameters_that_are_too_large_are_refused_by_the_server(server: str, deployment: str) -> None:
    parameters = {"job": {"prompt": "x" * 600_000}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, deployment, {"parameters": parameters})
    with refused.value as answer:
        assert answer.code == 422
        assert b"less than 524,288 bytes" in answer.read()


def planted(kind: str, good: bytes, mark: Path) -> bytes:
    """What the attacker puts in the place of a good object."""
    if kind == "pickle":
        return pickled(mark)
    if kind == "torch":
        buffer = io.BytesIO()
        torch.save({"x": torch.zeros(1)}, buffer)
        return buffer.getvalue()
    if kind == "huge header":
        return (2**62).to_bytes(8, "little") + good[8:]
    changed = {name: tensor + 1 for name, tensor in load(good).items()}
    return save(changed, metadata={"sha256": "0" * 64} if kind == "wrong digest" else None)


@pytest.mark.parametrize("kind", ["pickle", "torch", "huge header", "wrong digest", "no digest"])
def test_what_is_planted_in_the_store_counts_as_absent(
    kind: str, server: str, tmp_path: Path, planted_in: tuple[Path, bytes]
) -> None:
    """Every object of a finished run replaced: the picture is the same, and the trap did not go off."""
    store, picture = planted_in
    # Without the finished picture, which would be taken as it is.
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("pictures"))
    mark = tmp_path / "owned"
    objects = list((tmp_path / "store").rglob("*.safetensors"))
    assert len(objects) > 4
    for file in objects:
        file.write_bytes(planted(kind, file.read_bytes(), mark))
    home = tmp_path / "home"
    home.mkdir()
    record = render_json(
        [JOB, "--set", "steps=4", "--chunk", 2, "--store", "store"], tmp_path, environment(home, server)
    )
    assert record["steps_restored"] == 0
    assert (tmp_path / record["images"][0]).read_bytes() == picture
    assert not mark.exists()


@pytest.fixture(scope="module")
def planted_in(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The store of a run that went well, and its picture."""
    folder, home = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("home")
    arguments = [JOB, "--set", "steps=4", "--chunk", 2, "--store", "store"]
    record = render_json(arguments, folder, environment(home, server))
    return folder / "store", (folder / record["images"][0]).read_bytes()


def test_a_wrong_or_missing_auth_string_is_one_line(tmp_path: Path) -> None:
    for folder in ("server", "home"):
        (tmp_path / folder).mkdir()
    with prefect_server(tmp_path / "server", PREFECT_SERVER_API_AUTH_STRING="admin:right") as api:
        for given in ({"PREFECT_API_AUTH_STRING": "admin:wrong"}, {}):
            env = environment(tmp_path / "home", api) | given
            done = run(regional("render", JOB, "--json", "--set", "steps=2"), cwd=tmp_path, env=env)
            assert done.returncode == 2, done.stderr
            asked = "does not accept" if given else "asks for an auth string: set"
            assert done.stderr == f"Prefect server {api} {asked} PREFECT_API_AUTH_STRING (HTTP 401)\n"
        env = environment(tmp_path / "home", api) | {"PREFECT_API_AUTH_STRING": "admin:right"}
        assert render_json([JOB, "--set", "steps=2"], tmp_path, env)["steps_computed"] == 2


def test_no_server_at_all_is_one_line(tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9/api")
    done = run(regional("render", JOB, "--json"), cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr == "Prefect server http://127.0.0.1:9/api does not answer\n"
