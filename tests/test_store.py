"""The store: atomic, content-checked; damage counts as absent and is said."""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from botocore.exceptions import ClientError, NoCredentialsError
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error

from prefect_regional_diffusion.sampling_core.errors import BadInput, StoreError
from prefect_regional_diffusion.sampling_core.tensors.specs import specs_of
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.keys import ALL_STATES, EVERYTHING, masks, output, parsed, state, states
from prefect_regional_diffusion.tasks.storage.leftovers import old_leftovers
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.s3 import KEY, SECRET, client, objects, s3_server

TENSORS = {"x": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4), "sigma": torch.tensor(0.1, dtype=torch.float64)}


SPECS = specs_of(TENSORS)
HASH = sha256(b"something").hexdigest()
KEY_OF_STATE, FOLDER, MASKS, NOTHING = state(f"{HASH}/00001"), states(HASH), masks(HASH), masks(HASH[::-1])
FILE = output("x.png")


def placed(file: Path) -> Path:
    """A path whose folder is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def urls(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "store"), f"file://{tmp_path}/by-url", f"memory://{uuid.uuid4().hex}"]


@pytest.mark.parametrize("kind", range(3))
def test_reads_what_it_wrote(tmp_path: Path, kind: int) -> None:
    store = Store(urls(tmp_path)[kind])
    store.check()
    assert store.read_tensors(KEY_OF_STATE, SPECS) is None
    assert store.names(FOLDER) == []
    store.write_tensors(KEY_OF_STATE, TENSORS)
    store.write_tensors(KEY_OF_STATE, TENSORS)
    read = store.read_tensors(KEY_OF_STATE, SPECS)
    assert read is not None
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert store.names(FOLDER) == ["00001"]


@pytest.mark.parametrize("kind", range(3))
def test_a_place_exists_once_something_is_there(tmp_path: Path, kind: int) -> None:
    store = Store(urls(tmp_path)[kind])
    assert not store.exists()
    store.write(KEY_OF_STATE, b"x")
    assert store.exists()
    assert not Store(f"{store.url}/{KEY_OF_STATE.object_name}").exists(), "a file is no place"


@given(at=st.integers(0, 400), how=st.sampled_from(["truncate", "flip"]))
def test_damage_counts_as_absent(tmp_path_factory: pytest.TempPathFactory, at: int, how: str) -> None:
    """Cut anywhere, or any byte of the data or the header changed: never a wrong tensor."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(str(folder))
    store.write_tensors(MASKS, TENSORS)
    file = folder / MASKS.object_name
    data = bytearray(file.read_bytes())
    at = at % len(data)
    file.write_bytes(data[:at] if how == "truncate" else data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
    assert store.read_tensors(MASKS, SPECS) is None


def test_damage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    placed(tmp_path / MASKS.object_name).write_bytes(b"not tensors")
    with caplog.at_level(logging.WARNING):
        assert Store(str(tmp_path)).read_tensors(MASKS, SPECS) is None
    assert f"{MASKS} in" in caplog.text
    assert "damaged" in caplog.text


def test_no_half_file_under_a_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while writing: nothing is there under the key."""
    store = Store(str(tmp_path))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        store.write_tensors(KEY_OF_STATE, TENSORS)
    assert store.read_tensors(KEY_OF_STATE, SPECS) is None
    assert store.names(FOLDER) == []


def test_names_are_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rename the file's folder is synced, and the folder of each folder that was made for it."""
    synced: list[Path] = []
    sync = os.fsync

    def remember(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            assert (tmp_path / "new" / KEY_OF_STATE.object_name).exists(), "synced before the rename"
        sync(descriptor)

    monkeypatch.setattr("os.fsync", remember)
    store, folder = Store(str(tmp_path / "new")), tmp_path / "new" / FOLDER
    store.write_tensors(KEY_OF_STATE, TENSORS)
    assert set(synced) == {folder, *folder.parents[:2], tmp_path}
    synced.clear()
    store.write_tensors(KEY_OF_STATE, TENSORS)
    assert synced == [folder]


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr("os.fsync", refuse)
    store = Store(str(tmp_path))
    store.write_tensors(KEY_OF_STATE, TENSORS)
    assert store.names(FOLDER) == ["00001"]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(TENSORS, placed(tmp_path / MASKS.object_name))
    assert Store(str(tmp_path)).read_tensors(MASKS, SPECS) is None


def test_unusable_places_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^store: 'nothing://x' is not allowed; allowed: a folder or an fsspec URL"):
        Store("nothing://x")
    with pytest.raises(StoreError, match=r"^store /proc/no/such/place does not exist"):
        Store("/proc/no/such/place").check()


def s3_error(code: str) -> Exception:
    """As s3fs raises it: Python's error, caused by botocore's with S3's answer."""
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": code}}, "PutObject"))


PASSING = [OSError(errno.ENOSPC, "full"), TimeoutError(), ConnectionError(), s3_error("SlowDown"), RuntimeError("?")]
HOPELESS = [
    PermissionError("no"),
    FileNotFoundError("no such bucket"),
    FileExistsError("a file"),
    OSError(errno.EROFS, "read-only"),
    s3_error("InvalidBucketName"),
    s3_error("NoSuchBucket"),
]
REFUSED = [s3_error(code) for code in ("403", "AccessDenied", "RequestTimeTooSkewed", "ExpiredToken", "NoSuchUpload")]
"""Hopeless for keys that a store has never taken; a drifting clock, a proxy or a restart where it has."""
OF_THIS_MACHINE = [PermissionError(errno.EACCES, "no"), PermissionError(errno.EPERM, "no")]


@pytest.mark.parametrize("error", [*PASSING, *HOPELESS, *REFUSED, *OF_THIS_MACHINE], ids=repr)
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
        with pytest.raises(StoreError, match=r"^out /"):
            store.check(patient=True)
        with pytest.raises(StoreError, match=r"^out /"):
            store.write(FILE, b"")  # without ten minutes of patience
    with pytest.raises(StoreError, match=r"^out /"):
        store.check()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "has no space left: OSError: [Errno 28] full"),
        (OSError(errno.EROFS, "read-only"), "is read-only: OSError: [Errno 30] read-only"),
        (PermissionError(errno.EACCES, "no"), "gives no permission to write: PermissionError: [Errno 13] no"),
        (s3_error("AccessDenied"), "gives no permission to write: PermissionError: AccessDenied"),
        (NoCredentialsError(), "gives no permission to write: NoCredentialsError: Unable to locate credentials"),
        (s3_error("NoSuchBucket"), "does not exist: FileNotFoundError: NoSuchBucket"),
        (NotADirectoryError("x"), "is no folder, or has a file where a folder should be: NotADirectoryError: x"),
        (s3_error("InvalidBucketName"), "cannot be used: OSError: [Errno 22] InvalidBucketName"),
        (s3_error("SlowDown"), "does not answer: OSError: [Errno 16] SlowDown"),
        (ConnectionError("down"), "does not answer: ConnectionError: down"),
    ],
    ids=repr,
)
def test_each_kind_of_failure_has_its_own_words(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "s"))
    failing(store, monkeypatch, error, 1)
    with pytest.raises(StoreError) as refused:
        store.check()
    assert str(refused.value) == f"store {tmp_path}/s {words}"


def test_a_store_that_was_waited_for_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("prefect_regional_diffusion.tasks.machine.retry.time.monotonic", lambda: now[0])
    store = Store(str(tmp_path / "s"))
    failing(store, monkeypatch, ConnectionError("down"), 10**6)
    monkeypatch.setattr(
        "prefect_regional_diffusion.tasks.machine.retry.time.sleep", lambda pause: now.__setitem__(0, now[0] + pause)
    )
    with pytest.raises(StoreError, match=r"/s does not answer \(tried for 586 s\): ConnectionError: down$"):
        store.write(FILE, b"")


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
        Store(url).read(FILE, 9)


def failing(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[Exception]:
    """Let writes fail so often; returns the failures that are left. Nobody waits between them."""
    left, put = [error] * times, store._put

    def maybe(*arguments: Any) -> None:
        if left:
            raise left.pop()
        put(*arguments)

    monkeypatch.setattr(store, "_put", maybe)
    monkeypatch.setattr("prefect_regional_diffusion.tasks.machine.retry.time.sleep", lambda _: None)
    return left


@pytest.mark.parametrize("first", ["check", "write"])
@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_what_a_store_refuses_that_has_answered_is_tried_again(
    error: Exception, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has answered in this process: also another object for the same place."""
    before = Store(str(tmp_path))
    {"check": before.check, "write": lambda: before.write(FILE, b"1")}[first]()
    store = Store(str(tmp_path))
    left = failing(store, monkeypatch, error, 3)
    store.write(FILE, b"2")
    assert (left, store.read(FILE, 9)) == ([], b"2")
    failing(store, monkeypatch, error, 1)
    store.check(patient=True)


@pytest.mark.parametrize("error", [*HOPELESS[1:], *OF_THIS_MACHINE], ids=repr)
def test_what_stays_hopeless_after_an_answer(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such bucket, and what this machine's own disks refuse: people gave those rights and take them."""
    store = Store(str(tmp_path))
    store.check()
    left = failing(store, monkeypatch, error, 2)
    with pytest.raises(StoreError, match=r"^store /"):
        store.write(FILE, b"")
    assert len(left) == 1


@pytest.mark.parametrize("other", ["another place", "another right"])
def test_an_answer_to_something_else_says_nothing(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that may list and read, and not write, say so at once: nobody waits for them."""
    store = Store(str(tmp_path / "one"))
    if other == "another place":
        Store(str(tmp_path / "other")).check()
    else:
        assert (store.objects(EVERYTHING), store.read(FILE, 9)) == ([], None)
    failing(store, monkeypatch, REFUSED[0], 1)
    with pytest.raises(StoreError):
        store.write(FILE, b"")


def test_who_may_not_know_what_is_absent_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 403 for what is not there to those who may not list; later on, that would be waited for."""
    store, read = Store(f"memory://{uuid.uuid4().hex}"), MemoryFileSystem.cat_file

    def refused(self: MemoryFileSystem, path: str, **options: Any) -> bytes:
        try:
            return read(self, path, **options)
        except FileNotFoundError:
            raise s3_error("AccessDenied") from None

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refused)
    with pytest.raises(StoreError, match="PermissionError: AccessDenied"):
        store.check(patient=True)


HEX, OLD_AND_YOUNG = "0123456789abcdef" * 2, (2 * 3600, 60)
LEFT = [f"probe-{HEX}", f".probe-{HEX}.{HEX}.part", f".円-01234567.png.{HEX}.part", f".00001.safetensors.{HEX}.part"]
OTHERS = ["probe-1", f"my-probe-{HEX}", f"probe-{HEX}.png", f"x.png.{HEX}.part", f".x.txt.{HEX}.part", ".x.png.part"]


@pytest.mark.parametrize("below", ["", FOLDER])
def test_what_killed_writers_left_goes_when_it_is_old(tmp_path: Path, below: str) -> None:
    """In every folder that is written to; nothing young, no links and folders, and no file of somebody else's."""
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*LEFT, *OTHERS]:
        for age in OLD_AND_YOUNG:
            file = folder / (name if age > 3600 else name.replace(HEX, HEX[::-1]))
            if age > 3600 or HEX in name:
                file.write_bytes(b"")
                written = file.stat().st_mtime - age
                os.utime(file, (written, written))
    link, inner = folder / f"probe-{'a' * 32}", folder / f"probe-{'b' * 32}"
    link.symlink_to(folder / "probe-1")
    inner.mkdir()
    for place in (link, inner):
        os.utime(place, (1, 1), follow_symlinks=False)
    before = {file.name for file in folder.iterdir()}
    store = Store(str(tmp_path))
    if below:
        store.write(KEY_OF_STATE, b"")
    else:
        store.check()
    assert {file.name for file in folder.iterdir()} - {"00001.safetensors"} == before - set(LEFT)


def test_age_is_told_by_the_clock_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's may have been put forward while somebody writes."""
    (tmp_path / LEFT[2]).write_bytes(b"")
    monkeypatch.setattr("time.time", lambda: 4e9)
    Store(str(tmp_path)).check()
    assert [file.name for file in tmp_path.iterdir()] == [LEFT[2]]


def test_a_half_written_file_goes_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is really left there, an hour later, to a process that has not looked yet."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            Store(str(tmp_path)).write(output("円-0123.png"), b"half")
    (half,) = tmp_path.iterdir()
    written = half.stat().st_mtime - 3601
    os.utime(half, (written, written))
    Store(str(tmp_path)).check()
    assert list(tmp_path.iterdir()) == []


def test_probes_in_a_bucket_go_when_they_are_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one listing, of probes alone; told old by the store's own clock."""
    with s3_server(tmp_path, "latents") as port:
        endpoint = f"http://127.0.0.1:{port}"
        for name, value in {"ENDPOINT": endpoint, "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        settings.cache_clear()
        left = [f"x/{LEFT[0]}", "x/probe-1", f"x/deep/{LEFT[0]}", f"x/{LEFT[0]}.png"]
        for key in left:
            client(endpoint).put_object(Bucket="latents", Key=key, Body=b"ok")
        Store("s3://latents/x").check()
        assert set(objects(endpoint, "latents", "x")) == set(left), "they are young"
        monkeypatch.setattr("prefect_regional_diffusion.tasks.storage.leftovers.OLD_SECONDS", -1.0)
        Store("s3://latents/x").check()
        assert set(objects(endpoint, "latents", "x")) == set(left[1:])
    asked = unquote((tmp_path / "s3.log").read_text()).splitlines()
    assert len([line for line in asked if "list-type=2" in line and "prefix=x/probe-&" in line]) == 2


def test_a_folder_of_a_bucket_takes_one_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one too, and never one of its neighbours: in a large store there are many."""
    run, other, empty = (f"{number:064x}" for number in range(3))
    with s3_server(tmp_path, "latents") as port:
        endpoint = f"http://127.0.0.1:{port}"
        for name, value in {"ENDPOINT": endpoint, "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        settings.cache_clear()
        stored = [f"latents/{run}/00001.safetensors", f"latents/{run}/00002.safetensors"]
        for key in [*stored, f"latents/{other}/00001.safetensors", f"latents/{run}/deep/00003.safetensors"]:
            client(endpoint).put_object(Bucket="latents", Key=f"x/{key}", Body=b"ok")
        for url in ("s3://latents/x", "s3://latents/x/"):
            assert Store(url).names(states(run)) == ["00001", "00002"]
            assert Store(url).names(states(empty)) == []
            assert {entry.key for entry in Store(url).objects(states(run))} == {*map(parsed, stored), None}
            assert Store(url).objects(states(empty)) == []
            assert len(Store(url).objects(ALL_STATES)) == 4
            assert len(Store(url).objects(EVERYTHING)) == 4
    asked = unquote((tmp_path / "s3.log").read_text()).splitlines()
    listings = [line for line in asked if "list-type=2" in line]
    assert len(listings) == 12
    assert not [line for line in asked if "HEAD" in line]
    assert sum(run in line or empty in line for line in listings) == 8


def test_probes_in_other_places_go_as_well() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    system, root = MemoryFileSystem(), url.removeprefix("memory:/")
    store = Store(url)
    store.check()
    for name in (LEFT[0], "probe-1"):
        system.pipe_file(f"{root}/{name}", b"ok")
        system.store[f"{root}/{name}"].created = datetime.now(UTC) - timedelta(hours=2)
    store.check()
    assert [str(path).rpartition("/")[2] for path in system.ls(root, detail=False)] == ["probe-1"]


@given(st.text(max_size=60))
def test_no_other_name_is_taken_for_a_leftover(name: str) -> None:
    assert old_leftovers([(name, 0.0)], 1e9) == []


def test_an_object_of_s3_is_read_in_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is not there: a store is asked for many things that it may not have."""
    with s3_server(tmp_path, "latents") as port:
        for name, value in {"ENDPOINT": f"http://127.0.0.1:{port}", "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        settings.cache_clear()
        store = Store("s3://latents/x")
        store.write_tensors(MASKS, TENSORS)
        read = store.read_tensors(MASKS, SPECS)
        assert read is not None
        assert torch.equal(read["x"], TENSORS["x"])
        assert store.read_tensors(NOTHING, SPECS) is None
        there = {url: Store(f"s3://{url}").exists() for url in ("latents", "latents/x", "latents/none", "no-bucket")}
        assert there == {"latents": True, "latents/x": True, "latents/none": False, "no-bucket": False}
    asked = [line.split('"')[1] for line in (tmp_path / "s3.log").read_text().splitlines() if "/latents/x/" in line]
    paths = [f"/latents/x/{key.object_name} HTTP/1.1" for key in (MASKS, MASKS, NOTHING)]
    assert asked == [f"{method} {path}" for method, path in zip(("PUT", "GET", "GET"), paths, strict=True)]
