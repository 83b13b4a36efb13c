"""The store: atomic, content-checked; damage counts as absent and is said."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampling_core.errors import StoreError
from tasks.store import Store

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


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "k.safetensors")
    assert Store(str(tmp_path)).read_tensors("k") is None


@pytest.mark.parametrize("url", ["nothing://x", "/proc/no/such/place"])
def test_unusable_places_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"^store: "):
        Store(url).check()
