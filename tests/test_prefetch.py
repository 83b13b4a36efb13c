"""Models that are brought to a machine before a job asks for them; by a real S3 server."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_regional_diffusion.deployments import prefetch
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks.inputs.model_names import find_model
from prefect_regional_diffusion.tasks.machine import model_catalog
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage import fetched_models
from prefect_regional_diffusion.tasks.storage.fetch_progress import fetch_listener
from tests.forked import Forked
from tests.s3 import KEY, SECRET, client, s3_server

pytestmark = pytest.mark.e2e

SIZE = 400_000


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the log of a server, and its address. Its bucket `models` has two files, and a folder."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder, "models") as port:
        endpoint = f"http://127.0.0.1:{port}"
        for name in "ab":
            client(endpoint).put_object(Bucket="models", Key=f"{name}.safetensors", Body=os.urandom(SIZE))
        for file in EMBEDDED.rglob("*.json"):
            client(endpoint).upload_file(str(file), "models", f"folder/{file.relative_to(EMBEDDED)}")
        yield folder, endpoint


def reads(bucket: tuple[Path, str], name: str, at_least: int = 0) -> int:
    """How often the server has been asked for the content of a file: it says so a little after it has answered."""
    deadline = time.monotonic() + 30
    while True:
        found = (bucket[0] / "s3.log").read_text().count(f'"GET /models/{name}.safetensors ')
        if found >= at_least or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def machine(bucket: tuple[Path, str], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a catalog of three names, and nothing that was fetched. Jobs may name its folder alone."""
    for name, value in {
        "S3_ENDPOINT": bucket[1],
        "S3_KEY": KEY,
        "S3_SECRET": SECRET,
        "MODEL_CACHE": str(workdir / "cache"),
        "STORE_RETRY_SECONDS": "0",
        "CATALOG_BLOCK": "fleet",
    }.items():
        monkeypatch.setenv(f"REGIONAL_{name}", value)
    places = {"a": "s3://models/a.safetensors", "b": "s3://models/b.safetensors", "gone": "s3://models/gone"}
    monkeypatch.setattr(model_catalog, "_read", lambda _name: model_catalog.Catalog(places, ()))
    monkeypatch.setattr(fetched_models, "_fetched", {})
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Types the command in this process as if in another one; its exit code, stdout and stderr."""

    def type_(*names: str) -> tuple[int, str, str]:
        monkeypatch.setattr(fetched_models, "_fetched", {})
        monkeypatch.setattr(sys, "argv", ["prefetch", *names])
        with pytest.raises(SystemExit) as ended:
            prefetch.main()
        assert isinstance(ended.value.code, int)
        shown = capfd.readouterr()
        return ended.value.code, shown.out, shown.err

    return type_


def test_models_are_fetched_once_and_found_by_jobs(
    bucket: tuple[Path, str], typed: Callable[..., tuple[int, str, str]], workdir: Path
) -> None:
    code, out, err = typed("a", "s3://models/folder", "a")
    assert code == 0, err
    first, second = out.splitlines()
    assert first.startswith(f"a: {workdir}/cache/a.safetensors-")
    assert second.startswith(f"s3://models/folder: {workdir}/cache/folder-")
    assert err.splitlines()[:2] == [
        f"fetching s3://models/a.safetensors: {SIZE} bytes",
        "fetched s3://models/a.safetensors",
    ]
    assert reads(bucket, "a", 1) == 1
    assert typed("a") == (0, f"{first}\n", ""), "what is here is compared, and not fetched again"
    assert find_model("model", "a").place == first.partition(": ")[2]
    assert reads(bucket, "a") == 1

    file = Path(first.partition(": ")[2])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert typed("a")[0] == 0
    assert file.read_bytes() == whole, "damage is found by the SHA-256, and mended"


def test_without_names_the_catalog_is_fetched_and_what_cannot_be_is_a_line(
    typed: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = typed()
    assert code == 2
    assert [line.partition(":")[0] for line in out.splitlines()] == ["a", "b"]
    assert err.splitlines()[-1] == (
        "model: s3://models/gone does not exist, or has no weights, configurations and tokenizers below it"
    )


def test_what_does_not_fit_beside_what_is_being_fetched_is_a_line(
    typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONAL_MAX_MODEL_CACHE_BYTES", str(SIZE * 3 // 2))
    code, out, err = typed("a", "b")
    assert code == 2
    assert out.startswith("a: ")
    assert "REGIONAL_MAX_MODEL_CACHE_BYTES leaves" in err.splitlines()[-1]
    assert "beside models in use" in err.splitlines()[-1]


def test_without_names_and_catalog_it_says_what_it_wants(
    typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REGIONAL_CATALOG_BLOCK")
    code, out, err = typed()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "REGIONAL_CATALOG_BLOCK" in err


def test_progress_ends_at_all_bytes_and_begins_with_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_MODEL_STORES", "s3://models")
    monkeypatch.setattr(fetched_models, "_BLOCK_BYTES", SIZE // 4)
    told: list[tuple[str, int, int]] = []
    token = fetch_listener.set(lambda *told_now: told.append(told_now))
    try:
        find_model("model", "s3://models/a.safetensors")
    finally:
        fetch_listener.reset(token)
    assert told == [("s3://models/a.safetensors", SIZE * part // 4, SIZE) for part in range(5)]


def test_a_killed_one_is_gone_on_with_by_one_that_waits(bucket: tuple[Path, str], workdir: Path) -> None:
    """Two processes: one fetches, the other waits for it; the first one is killed, and the other fetches the rest."""
    code = """
import sys
from prefect_regional_diffusion.deployments import prefetch
from prefect_regional_diffusion.tasks.storage import fetched_models
fetched_models._BLOCK_BYTES = 4000
sys.argv = ["prefetch", "s3://models/b.safetensors"]
prefetch.main()
"""
    env = {name: value for name, value in os.environ.items() if name != "REGIONAL_CATALOG_BLOCK"}
    before = reads(bucket, "b")
    with (workdir / "first.log").open("w+") as first_log, (workdir / "second.log").open("w+") as second_log:
        first = Forked([sys.executable, "-c", code], cwd=workdir, env=env, stderr=first_log)
        until(lambda: any(part.stat().st_size > SIZE // 10 for part in (workdir / "cache").rglob("parts/*")))
        second = Forked([sys.executable, "-c", code], cwd=workdir, env=env, stdout=second_log, stderr=second_log)
        until(lambda: "waiting for another process" in (workdir / "second.log").read_text())
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
        assert second.wait(120) == 0, (workdir / "second.log").read_text()
    (file,) = (workdir / "cache").rglob("content/b.safetensors")
    assert file.read_bytes() == client(bucket[1]).get_object(Bucket="models", Key="b.safetensors")["Body"].read()
    # Each block once, but for that which was on its way when the first one was killed.
    assert reads(bucket, "b", before + 100) - before - 1 <= SIZE // 4000 + 1
    shutil.rmtree(workdir / "cache")


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
