"""Models in a bucket: fetched once a machine, whole and checked; by a real S3 server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks.inputs.file_search import find_place
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from prefect_regional_diffusion.tasks.storage import fetched_models
from tests.original_layouts import written
from tests.s3 import KEY, SECRET, client, s3_server
from tests.tiny_models import tiny_sd

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the log of a server, and its address. Its bucket `models` has a folder and a file."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder, "models", "private") as port:
        endpoint = f"http://127.0.0.1:{port}"
        upload(endpoint, EMBEDDED, "team/embedded")
        client(endpoint).put_object(Bucket="models", Key="team/embedded/run_me.py", Body=b"raise SystemExit")
        tiny_sd(folder / "sd1")
        written(folder / "sd1", folder / "one.safetensors", "sd1")
        client(endpoint).upload_file(str(folder / "one.safetensors"), "models", "team/one.safetensors")
        upload(endpoint, folder / "one", "team/one")
        yield folder, endpoint


def upload(endpoint: str, folder: Path, prefix: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            client(endpoint).upload_file(str(file), "models", f"{prefix}/{file.relative_to(folder)}")


@pytest.fixture(autouse=True)
def machine(bucket: tuple[Path, str], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that may fetch from a part of one bucket, and has not yet."""
    for name, value in {
        "REGIONAL_S3_ENDPOINT": bucket[1],
        "REGIONAL_S3_KEY": KEY,
        "REGIONAL_S3_SECRET": SECRET,
        "REGIONAL_MODEL_STORES": "s3://models/team",
        "REGIONAL_MODEL_CACHE": str(workdir / "cache"),
        "REGIONAL_STORE_RETRY_SECONDS": "0",
    }.items():
        monkeypatch.setenv(name, value)
    another_process(monkeypatch)


def another_process(monkeypatch: pytest.MonkeyPatch, **setting: object) -> None:
    """What is fetched once a process is asked for again."""
    for name, value in setting.items():
        monkeypatch.setenv(f"REGIONAL_{name}", str(value))
    settings.cache_clear()
    monkeypatch.setattr(fetched_models, "_fetched", {})


def reads(bucket: tuple[Path, str], at_least: int = 0) -> int:
    """How often the server has been asked for the content of the file: it says so a little after it has answered."""
    deadline = time.monotonic() + 30
    while True:
        found = (bucket[0] / "s3.log").read_text().count('"GET /models/team/one.safetensors ')
        if found >= at_least or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def refusal(url: str, kind: type[RegionalError]) -> str:
    with pytest.raises(kind) as refused:
        open_model(url)
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_a_folder_below_a_prefix_is_the_folder() -> None:
    model = open_model("s3://models/team/embedded")
    assert model.fingerprint() == open_model("embedded").fingerprint()
    assert not list(Path("cache").rglob("*.py"))


def test_a_file_is_fetched_once_with_the_folder_beside_it(
    bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bucket[0] / "one", "one")
    shutil.copy(bucket[0] / "one.safetensors", "one.safetensors")
    before = reads(bucket)
    assert open_model("s3://models/team/one.safetensors").fingerprint() == open_model("one.safetensors").fingerprint()
    assert reads(bucket, before + 1) == before + 1
    for _ in range(2):
        open_model("s3://models/team/one.safetensors")
        another_process(monkeypatch)
    assert reads(bucket, before + 1) == before + 1


def test_a_picture_is_drawn_with_it_and_calls_it_by_its_url() -> None:
    job: dict[str, Any] = {"prompt": "a red circle on a blue background", "steps": 1, "seed": 3}
    record = asyncio.run(render.fn(parse_job(job | {"model": "s3://models/team/embedded"})))
    assert record["files"]["model"]["name"] == "s3://models/team/embedded"
    assert record["files"]["model"]["sha256"] == open_model("embedded").fingerprint()


def test_another_content_of_the_same_url_is_fetched_anew(
    bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = client(bucket[1])
    s3.put_object(Bucket="models", Key="team/lora.safetensors", Body=b"one")
    first = find_place("loras.0.file", "s3://models/team/lora.safetensors", "LoRA")
    s3.put_object(Bucket="models", Key="team/lora.safetensors", Body=b"two")
    assert find_place("loras.0.file", "s3://models/team/lora.safetensors", "LoRA") == first, "a run keeps what it has"
    another_process(monkeypatch)
    second = find_place("loras.0.file", "s3://models/team/lora.safetensors", "LoRA")
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == (b"one", b"two")


def test_a_file_that_is_damaged_here_is_fetched_again(
    bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = reads(bucket)
    place = Path(find_place("model", "s3://models/team/one.safetensors", "model"))
    whole = place.read_bytes()
    place.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    another_process(monkeypatch)
    assert Path(find_place("model", "s3://models/team/one.safetensors", "model")).read_bytes() == whole
    assert reads(bucket, before + 2) == before + 2


def test_what_was_interrupted_is_gone_on_with(bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    content = (bucket[0] / "one.safetensors").read_bytes()
    monkeypatch.setattr(fetched_models, "_BLOCK_BYTES", len(content) // 4 + 1)
    asked: list[int] = []
    retry = fetched_models.retry_transient

    def failing(url: str, work: Any, operation: Any, field: str) -> Any:
        if "start" in getattr(work, "keywords", {}):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(work.keywords["start"])
        return retry(url, work, operation, field)

    with monkeypatch.context() as patched:
        patched.setattr(fetched_models, "retry_transient", failing)
        with pytest.raises(KeyboardInterrupt):
            open_model("s3://models/team/one.safetensors")
    assert not list(Path("cache").rglob("one.safetensors")), "nobody takes it for whole"
    before = reads(bucket)
    place = find_place("model", "s3://models/team/one.safetensors", "model")
    assert reads(bucket, before + 2) == before + 2
    assert Path(place).read_bytes() == content


def test_two_processes_fetch_it_once(bucket: tuple[Path, str]) -> None:
    code = (
        "from prefect_regional_diffusion.tasks.storage.fetched_models import fetched;"
        "print(fetched('model', 's3://models/team/one.safetensors'))"
    )
    before = reads(bucket)
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert places[0] == places[1]
    assert Path(places[0]).read_bytes() == (bucket[0] / "one.safetensors").read_bytes()
    assert reads(bucket, before + 1) == before + 1


def test_what_was_used_longest_ago_makes_room(bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = client(bucket[1])
    urls = [f"s3://models/team/{name}.safetensors" for name in "abc"]
    for url in urls:
        s3.put_object(Bucket="models", Key=url.removeprefix("s3://models/"), Body=os.urandom(40_000))
    held: list[Path] = []
    monkeypatch.setattr(fetched_models, "_hold", lambda entry: held.append(entry))
    another_process(monkeypatch, MAX_MODEL_CACHE_BYTES=100_000)
    first, second = (Path(find_place("model", url, "model")) for url in urls[:2])
    os.utime(first.parents[1], (2e9, 2e9))
    third = Path(find_place("model", urls[2], "model"))
    assert [place.exists() for place in (first, second, third)] == [True, False, True]
    assert len(held) == 3


def test_what_is_in_use_is_not_removed(bucket: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        client(bucket[1]).put_object(Bucket="models", Key=f"team/{name}.safetensors", Body=os.urandom(60_000))
    another_process(monkeypatch, MAX_MODEL_CACHE_BYTES=100_000)
    first = Path(find_place("model", "s3://models/team/a.safetensors", "model"))
    with pytest.raises(ModelError, match=r"REGIONAL_MAX_MODEL_CACHE_BYTES leaves \d+ beside models in use"):
        find_place("model", "s3://models/team/b.safetensors", "model")
    assert first.exists()


@pytest.mark.parametrize(
    "url",
    [
        "s3://private/one.safetensors",
        "s3://models/other/one.safetensors",
        "s3://models/team-evil/one.safetensors",
        "s3://models/team/../other/one.safetensors",
        "s3://user:secret@models/team/one.safetensors",
        "http://169.254.169.254/one.safetensors",
        "file:///etc/passwd",
    ],
)
def test_other_places_are_refused(url: str) -> None:
    line = refusal(url, BadInput)
    assert line.startswith("model: ")
    assert "s3://bucket/name under REGIONAL_MODEL_STORES (s3://models/team)" in line
    assert "secret" not in line


def test_nothing_is_fetched_unless_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    another_process(monkeypatch, MODEL_STORES="")
    assert "under REGIONAL_MODEL_STORES (none)" in refusal("s3://models/team/one.safetensors", BadInput)


def test_what_is_not_there_or_too_large_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in refusal("s3://models/team/none.safetensors", ModelError)
    assert "does not exist, or has no weights" in refusal("s3://models/team/none", ModelError)
    another_process(monkeypatch, MAX_MODEL_CACHE_BYTES=1000)
    line = refusal("s3://models/team/one.safetensors", ModelError)
    assert "more than 1000 (REGIONAL_MAX_MODEL_CACHE_BYTES)" in line
