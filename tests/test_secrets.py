"""Keys of a real S3 server over HTTP, from settings and from a Prefect block: they get nowhere but into requests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.processes import environment, prefect_server, regional
from tests.s3 import KEY, SECRET, client, objects, s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server with the bucket `latents`."""
    with s3_server(tmp_path_factory.mktemp("s3"), "latents") as port:
        yield f"http://127.0.0.1:{port}"


def _objects(endpoint: str, prefix: str) -> dict[str, bytes]:
    keys = objects(endpoint, "latents", prefix)
    return {key: client(endpoint).get_object(Bucket="latents", Key=key)["Body"].read() for key in keys}


@pytest.mark.parametrize("way", ["settings", "block"])
def test_keys_are_used_and_kept_nowhere(way: str, s3: str, tmp_path: Path) -> None:
    server_home, home, work = (tmp_path / name for name in ("server", "home", "work"))
    for folder in (server_home, home, work):
        folder.mkdir()
    (work / "job.yaml").write_text("prompt: a blue background\nsteps: 2\n")
    command = regional("render", "job.yaml", "--json", "--store", f"s3://latents/{way}")
    with prefect_server(server_home, PREFECT_SERVER_LOGGING_LEVEL="DEBUG") as api:
        env = environment(home, api) | {"PREFECT_LOGGING_LEVEL": "DEBUG", "AWS_EC2_METADATA_DISABLED": "true"}
        if way == "settings":
            env |= {"REGIONAL_S3_KEY": KEY, "REGIONAL_S3_SECRET": SECRET, "REGIONAL_S3_ENDPOINT": s3}
        else:
            env |= {"REGIONAL_STORE_BLOCK": "s3-keys"}
            options = {"key": KEY, "secret": SECRET, "endpoint_url": s3}
            code = f"from prefect.blocks.system import Secret; Secret(value={options!r}).save('s3-keys')"
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, check=True, capture_output=True)
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["steps_computed"] == 2
        time.sleep(3)  # logs reach the server in batches

    stored = _objects(s3, way)
    assert len(stored) > 2
    places = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".png" for path in places)
    # What the server keeps is searched too: parameters, logs, artifacts, blocks. It has the URL, so it is readable.
    assert any(b"s3://latents" in data for path, data in places.items() if path.name.startswith("prefect.db"))
    places |= {Path(key): data for key, data in stored.items()}
    places |= {Path("stdout"): done.stdout.encode(), Path("stderr"): done.stderr.encode()}
    with Image.open(work / record["images"][0]) as image:
        places[Path("chunks")] = json.dumps(image.info).encode()
    assert [path for path, data in places.items() if SECRET.encode() in data or KEY.encode() in data] == []


def test_wrong_keys_are_not_repeated(s3: str, tmp_path: Path) -> None:
    """A bucket that is not there, and half a pair of keys: one line each, without what was given."""
    (tmp_path / "job.yaml").write_text("prompt: a blue background\nsteps: 2\n")
    env = environment(tmp_path) | {"REGIONAL_S3_ENDPOINT": s3, "REGIONAL_S3_SECRET": SECRET}
    for keys, field in (({"REGIONAL_S3_KEY": KEY}, "store: "), ({}, "REGIONAL_S3_KEY: ")):
        command = regional("render", "job.yaml", "--store", "s3://no-such-bucket/x")
        done = subprocess.run(command, cwd=tmp_path, env=env | keys, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(field)
        assert done.stderr.count("\n") == 1
        assert SECRET not in done.stderr
        assert KEY not in done.stderr
