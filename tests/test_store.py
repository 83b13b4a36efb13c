"""The store: atomic, content-checked; damage counts as absent and is said."""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from pathlib import Path

import pytest
import torch
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from sampling_core.errors import StoreError
from tasks.settings import settings
from tasks.store import Store
from tests.s3 import KEY, SECRET, s3_server

TENSORS = {"x": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4), "sigma": torch.tensor(0.1, dtype=torch.float64)}


def urls(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "store"), f"file://{tmp_path}/by-url", f"memory://{uuid.uuid4().hex}"]


@pytest.mark.parametrize("kind", range(3))
def test_reads_what_it_wrote(tmp_path: Path, kind: int) -> None:
    store = Store(urls(tmp_path)[kind])
    store.check()
    assert store.read_tensors("a/b") is None
    assert store.names("a") == []
    store.write_tensors("a/b", TENSORS)
    store.write_tensors("a/b", TENSORS)
    read = store.read_tensors("a/b")
    assert read is not None
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert store.names("a") == ["b"]


@pytest.mark.parametrize("kind", range(3))
def test_a_place_exists_once_something_is_there(tmp_path: Path, kind: int) -> None:
    store = Store(urls(tmp_path)[kind])
    assert not store.exists()
    store.write("a/b", b"x")
    assert store.exists()
    assert not Store(f"{store.url}/a/b").exists(), "a file is no place"


@given(at=st.integers(0, 400), how=st.sampled_from(["truncate", "flip"]))
def test_damage_counts_as_absent(tmp_path_factory: pytest.TempPathFactory, at: int, how: str) -> None:
    """Cut anywhere, or any byte of the data or the header changed: never a wrong tensor."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(str(folder))
    store.write_tensors("k", TENSORS)
    file = folder / "k.safetensors"
    data = bytearray(file.read_bytes())
    at = at % len(data)
    file.write_bytes(data[:at] if how == "truncate" else data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
    assert store.read_tensors("k") is None


def test_damage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k.safetensors").write_bytes(b"not tensors")
    with caplog.at_level(logging.WARNING):
        assert Store(str(tmp_path)).read_tensors("k") is None
    assert "k in" in caplog.text
    assert "damaged" in caplog.text


def test_no_half_file_under_a_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while writing: nothing is there under the key."""
    store = Store(str(tmp_path))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        store.write_tensors("a/k", TENSORS)
    assert store.read_tensors("a/k") is None
    assert store.names("a") == []


def test_names_are_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rename the file's folder is synced, and the folder of each folder that was made for it."""
    synced: list[Path] = []
    sync = os.fsync

    def remember(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            assert (tmp_path / "new/a/k.safetensors").exists(), "synced before the rename"
        sync(descriptor)

    monkeypatch.setattr("os.fsync", remember)
    store = Store(str(tmp_path / "new"))
    store.write_tensors("a/k", TENSORS)
    assert set(synced) == {tmp_path / "new/a", tmp_path / "new", tmp_path}
    synced.clear()
    store.write_tensors("a/k", TENSORS)
    assert synced == [tmp_path / "new/a"]


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr("os.fsync", refuse)
    store = Store(str(tmp_path))
    store.write_tensors("a/k", TENSORS)
    assert store.names("a") == ["k"]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "k.safetensors")
    assert Store(str(tmp_path)).read_tensors("k") is None


@pytest.mark.parametrize("url", ["nothing://x", "/proc/no/such/place"])
def test_unusable_places_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"^store: "):
        Store(url).check()


def s3_error(code: str, kind: type[OSError] = OSError) -> OSError:
    """As s3fs raises it: Python's error, caused by botocore's with S3's answer."""
    error = kind(errno.EINVAL, code)
    error.__cause__ = ClientError({"Error": {"Code": code}}, "PutObject")
    return error


PASSING = [OSError(errno.ENOSPC, "full"), TimeoutError(), ConnectionError(), s3_error("SlowDown"), RuntimeError("?")]
HOPELESS = [
    PermissionError("no"),
    FileNotFoundError("no such bucket"),
    FileExistsError("a file"),
    OSError(errno.EROFS, "read-only"),
    s3_error("InvalidBucketName"),
]


@pytest.mark.parametrize("error", PASSING + HOPELESS, ids=repr)
def test_a_patient_check_refuses_what_will_not_pass_and_nothing_else(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "out")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, "_put", fail)
    if error in PASSING:
        store.check(patient=True)
    else:
        with pytest.raises(StoreError, match=r"^out: .* a place that can be written"):
            store.check(patient=True)
        with pytest.raises(StoreError, match=r"^out: .* a store that answers"):
            store.write("x", b"")  # without ten minutes of patience
    with pytest.raises(StoreError, match=r"^out: "):
        store.check()


@pytest.mark.parametrize(
    ("url", "reason"), [("s3://bucket/x", "NoCredentials"), ("s3://no bucket/x", "ParamValidation")]
)
def test_what_botocore_refuses_by_itself_is_hopeless(
    url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No keys anywhere, a name that no bucket can have: no request is ever sent."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGIONAL_S3_ENDPOINT", "http://127.0.0.1:9")
    if reason == "ParamValidation":
        monkeypatch.setenv("REGIONAL_S3_KEY", "key")
        monkeypatch.setenv("REGIONAL_S3_SECRET", "secret")
    settings.cache_clear()
    with pytest.raises(StoreError, match=reason):
        Store(url).check(patient=True)
    with pytest.raises(StoreError, match=reason):
        Store(url).read("x")


def test_an_object_of_s3_is_read_in_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is not there: a store is asked for many things that it may not have."""
    with s3_server(tmp_path, "latents") as port:
        for name, value in {"ENDPOINT": f"http://127.0.0.1:{port}", "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        settings.cache_clear()
        store = Store("s3://latents/x")
        store.write_tensors("k", TENSORS)
        read = store.read_tensors("k")
        assert read is not None
        assert torch.equal(read["x"], TENSORS["x"])
        assert store.read_tensors("nothing") is None
        there = {url: Store(f"s3://{url}").exists() for url in ("latents", "latents/x", "latents/none", "no-bucket")}
        assert there == {"latents": True, "latents/x": True, "latents/none": False, "no-bucket": False}
    asked = [line.split('"')[1] for line in (tmp_path / "s3.log").read_text().splitlines() if "/latents/x/" in line]
    paths = [f"/latents/x/{key}.safetensors HTTP/1.1" for key in ("k", "k", "nothing")]
    assert asked == [f"{method} {path}" for method, path in zip(("PUT", "GET", "GET"), paths, strict=True)]
