"""Keys of a real S3 server over HTTP, from settings and from a Prefect block: they get nowhere but into requests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.text import plain_text
from prefect_regional_diffusion.sampling_core.text.plain_text import (
    hide,
    plain,
    plain_address,
    plain_lines,
    plain_path,
    plain_value,
    redacted,
)
from prefect_regional_diffusion.tasks.machine.secrets import hide_keys, reason_of
from prefect_regional_diffusion.tasks.storage.failures import remember
from prefect_regional_diffusion.tasks.storage.retry import retry_transient
from tests.forked import run
from tests.processes import environment, prefect_server, regional
from tests.s3 import KEY, SECRET, client, objects, s3_server

ADDRESS_SECRET = "hunter2/SESAME77+x?OPEN88#q9z8x7w6"
"""As in AWS' keys, with signs that end a part of a URL."""


@pytest.fixture(autouse=True)
def no_keys_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hidden here is no other test's."""
    monkeypatch.setattr(plain_text, "_keys", set())


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server with the bucket `latents`."""
    with s3_server(tmp_path_factory.mktemp("s3"), "latents") as port:
        yield f"http://127.0.0.1:{port}"


def _objects(endpoint: str, prefix: str) -> dict[str, bytes]:
    keys = objects(endpoint, "latents", prefix)
    return {key: client(endpoint).get_object(Bucket="latents", Key=key)["Body"].read() for key in keys}


@pytest.mark.e2e
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
            options = {"s3_key": KEY, "s3_secret": SECRET, "s3_endpoint": s3}
            code = f"from prefect_regional_diffusion import RegionalStore; RegionalStore(**{options!r}).save('s3-keys')"
            run([sys.executable, "-W", "ignore", "-c", code], cwd=work, env=env).check_returncode()
        done = run(command, cwd=work, env=env)
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


@pytest.mark.e2e
def test_wrong_keys_are_not_repeated(s3: str, tmp_path: Path) -> None:
    """A bucket that is not there, and half a pair of keys: one line each, without what was given."""
    (tmp_path / "job.yaml").write_text("prompt: a blue background\nsteps: 2\n")
    env = environment(tmp_path) | {"REGIONAL_S3_ENDPOINT": s3, "REGIONAL_S3_SECRET": SECRET}
    for keys, field in (
        ({"REGIONAL_S3_KEY": KEY}, "store s3://no-such-bucket/x does not exist: "),
        ({}, "REGIONAL_S3_KEY: "),
    ):
        command = regional("render", "job.yaml", "--store", "s3://no-such-bucket/x")
        done = run(command, cwd=tmp_path, env=env | keys)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(field)
        assert done.stderr.count("\n") == 1
        assert SECRET not in done.stderr
        assert KEY not in done.stderr


# Keys in addresses: whoever types one there, sees it nowhere again.
PASSWORDS = st.text(
    st.sampled_from("ABCDEFGHJKLMNPQRSTUVWXYZ23456789/+=?#&%:@'\"[]()\\"), min_size=8, max_size=40
).filter(lambda text: sum(map(str.isalnum, text)) >= 8)


def pieces(secret: str) -> list[str]:
    """Parts of a secret that say something of it."""
    return [secret[i : i + 6] for i in range(len(secret) - 5) if secret[i : i + 6].isalnum()]


@given(
    password=PASSWORDS, form=st.sampled_from(["{}", "cannot reach {} (HTTP 403)", "for url '{}'\nfor more", "a,{};b"])
)
@example(password="HUNTER23/SECRET+X", form="{}")
@example(password="AAAAAAAA@BBBBBBBB", form="for url '{}'\nfor more")
def test_no_part_of_a_password_is_left_of_an_address(password: str, form: str) -> None:
    for url in (f"s3://kEy:{password}@bucket/p", f"https://user:{password}@host:80/api", f"a::s3://k:{password}@b"):
        text = form.format(url)
        shown = [plain(text), plain_path(text), plain_lines(text), redacted(text), plain_value(text)]
        shown += [plain_address(url), str(BadInput("x", {"y": [text]}, text))]
        assert not [line for line in shown for piece in pieces(password) if piece in line]
        assert all(url.rpartition("@")[2].partition("/")[0] in line for line in shown[:4])


@given(secret=st.text(st.sampled_from("ABCDEFGHJK23456789+/%"), min_size=8))
def test_no_value_of_a_query_is_left(secret: str) -> None:
    for tail in (
        f"?X-Amz-Signature={secret}",
        f"?a=1&token={secret}",
        f"?{secret}",
        f"#{secret}",
        f"#access_token={secret}",
    ):
        for text in (f"https://host/path{tail}", f"asked for https://host/path{tail} in vain"):
            for shown in (plain(text), plain_value(text), plain_lines(text)):
                assert secret not in shown
                assert "https://host/path" in shown
    for name in (
        "X-Amz-Signature",
        "Credential",
        "X-Amz-Security-Token",
        "token",
        "client_secret",
        "password",
        "api_key",
    ):
        assert secret not in plain(f"GET /bucket/key?x=1&{name}={secret} failed")


@pytest.mark.parametrize(
    "url", ["s3://bucket/prefix", "http://host:4200/api", "abfs://box@account.dfs.example/a", "/a/b@c:1", "s3://b/me@x"]
)
def test_addresses_without_keys_stay(url: str) -> None:
    assert plain(url) == plain_path(url) == plain_address(url) == url


def test_keys_that_are_known_are_found_in_any_form() -> None:
    hide(["AKIAHUNTER", "with/slash+and", "admin:password"], ["https://user:p4sswd1/ord7777@host"])
    error = RuntimeError(
        "AKIAHUNTER with%2Fslash%2Band Basic YWRtaW46cGFzc3dvcmQ= and Invalid port: 'p4sswd1', ord7777, p4sswd1/ord7777"
    )
    assert reason_of(error) == "RuntimeError: … … Basic … and Invalid port: '…', …, …"
    assert str(BadInput("AKIAHUNTER", "AKIAHUNTER", "AKIAHUNTER")) == "…: '…' is not allowed; allowed: …"


def test_prefects_own_keys_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, temporary_settings

    with temporary_settings({PREFECT_API_KEY: "pnu_hunter2", PREFECT_API_AUTH_STRING: "admin:hunter2-too"}):
        hide_keys()
    assert plain("pnu_hunter2, admin:hunter2-too, hunter2-too") == "…, …, …"


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"REGIONAL_STORE": "s3://KEY:{}@bucket"}, ["render", "job.yaml"]),
        ({"REGIONAL_STORE": "s3://KEY:{}@bucket"}, ["store", "ls"]),
        ({"REGIONAL_STORE": "s3://bucket?X-Amz-Signature={}"}, ["render", "job.yaml"]),
        (
            {"REGIONAL_STORE": "s3://KEY:{}@bucket", "REGIONAL_ALLOWED_STORES": "x"},
            ["render", "job.yaml", "--store", "y"],
        ),
        ({"REGIONAL_OUT": "s3://KEY:{}@bucket"}, ["render", "job.yaml"]),
        ({"REGIONAL_OUT": "s3://bucket#{}"}, ["render", "job.yaml"]),
        (
            {"REGIONAL_OUT": "https://user:{}@host/x", "REGIONAL_ALLOWED_OUTPUTS": "x"},
            ["render", "job.yaml", "--out", "y"],
        ),
        ({"REGIONAL_ASSET_ROOTS": "s3://KEY:{}@bucket"}, ["render", "job.yaml", "--set", "init_image=x.png"]),
        ({"REGIONAL_ALLOWED_STORES": "s3://KEY:x,{}@bucket"}, ["render", "job.yaml", "--store", "/y"]),
        ({"REGIONAL_ALLOWED_OUTPUTS": "s3://KEY:x,{}@bucket"}, ["render", "job.yaml", "--out", "/y"]),
        ({"REGIONAL_ASSET_ROOTS": "s3://KEY:x,{}@bucket"}, ["render", "job.yaml", "--set", "model=/y"]),
        ({"REGIONAL_S3_ENDPOINT": "https://user:{}@host"}, ["render", "job.yaml", "--store", "s3://bucket/x"]),
        ({"REGIONAL_KEEP": "s3://KEY:{}@bucket"}, ["render", "job.yaml"]),
        ({"REGIONAL_DEVICE": "s3://KEY:{}@bucket"}, ["render", "job.yaml"]),
        ({}, ["render", "job.yaml", "--store", "simplecache::s3://KEY:{}@bucket"]),
        ({}, ["render", "job.yaml", "--out", "https://user:{}@host"]),
        ({}, ["render", "s3://KEY:{}@bucket/job.yaml"]),
        ({}, ["batch", "s3://KEY:{}@bucket/*.yaml"]),
        ({}, ["plan", "job.yaml", "--set", "init_image=https://user:{}@host/x.png"]),
        ({}, ["plan", "job.yaml", "--set", "model=https://user:{}@host/x"]),
        ({}, ["plan", "job.yaml", "--set", "sampler=https://user:{}@host/x"]),
        ({"PREFECT_API_URL": "http://user:{}@127.0.0.1:9/api"}, ["submit", "job.yaml"]),
    ],
    ids=range(22),
)
def test_a_refusal_does_not_repeat_the_key(
    variables: dict[str, str],
    arguments: list[str],
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("job.yaml").write_text("prompt: a blue background\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(ADDRESS_SECRET))
    monkeypatch.setattr(sys, "argv", ["regional", *(argument.format(ADDRESS_SECRET) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert err.count("\n") == 1
    assert not [piece for piece in pieces(ADDRESS_SECRET) if piece in out + err]


def test_a_library_that_repeats_an_address_does_not_tell_its_key(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also not in the log of a store that is tried again."""
    from prefect_regional_diffusion.tasks.machine import retry as patience
    from prefect_regional_diffusion.tasks.machine.settings import settings

    url = f"https://user:{ADDRESS_SECRET}@host/bucket?X-Amz-Signature={ADDRESS_SECRET}"
    monkeypatch.setenv("REGIONAL_STORE_RETRY_SECONDS", "1")
    settings.cache_clear()
    monkeypatch.setattr(patience.time, "sleep", lambda _: None)
    remember(url, "read")
    tries: list[int] = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError(f'Could not connect to the endpoint URL: "{url}"')
        return "done"

    assert retry_transient(url, work, "read") == "done"
    assert len(caplog.messages) == 2
    assert not [piece for piece in pieces(ADDRESS_SECRET) if piece in caplog.text]


@pytest.mark.e2e
def test_a_password_in_the_servers_address_is_told_nowhere(tmp_path: Path) -> None:
    """A run and its record, on a server whose address has a password; then the same address with a wrong port."""
    password = "hunter2SECRETinAURL"
    for name in ("server", "home", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "job.yaml").write_text("prompt: a blue background\nsteps: 1\nwidth: 64\nheight: 64\n")
    said = ""
    with prefect_server(tmp_path / "server") as api:
        address = api.replace("http://", f"http://user:{password}@")
        for url, arguments, code in (
            (address, ["render", "job.yaml", "--json"], 0),
            (address, ["submit", "job.yaml"], 2),
            (address.replace("127.0.0.1:", "127.0.0.1:1"), ["render", "job.yaml"], 2),
        ):
            env = environment(tmp_path / "home", url) | {"PREFECT_LOGGING_LEVEL": "DEBUG"}
            env |= {"PREFECT_CLIENT_MAX_RETRIES": "0"}
            # Not forked: Prefect sets up its logs when it is imported.
            done = subprocess.run(
                regional(*arguments), cwd=tmp_path / "work", env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == code, done.stderr
            said += done.stdout + done.stderr
        time.sleep(3)  # logs reach the server in batches
    places = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".json" for path in places)
    assert [path for path, data in places.items() if password.encode() in data] == []
    assert password not in said
