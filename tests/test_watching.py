"""The witnesses themselves: they see what they are there for."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.watching import Memory, names_opened, paths_touched


def test_what_python_opens_and_removes_is_seen(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    victim = tmp_path / "victim"
    with paths_touched() as touched:
        (tmp_path / "inside" / ".." / "victim").write_text("x")
        victim.unlink()
    assert touched.count(str(victim)) == 2
    victim.write_text("not seen any more")
    assert touched.count(str(victim)) == 2


def test_what_other_libraries_open_is_seen(tmp_path: Path) -> None:
    """safetensors opens files in Rust, where no audit hook is asked."""
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with names_opened(tmp_path) as opened:
        load_file(tmp_path / "weights.safetensors")
    assert "weights.safetensors" in opened
    with names_opened(tmp_path) as opened:
        pass
    assert opened == []


def test_memory_that_is_given_back_is_seen() -> None:
    memory = Memory()
    assert memory.grown() < 2**20
    with mmap.mmap(-1, 2**26) as taken:
        taken.write(b"\1" * 2**20 * 64)
    assert memory.grown() >= 2**26 - 2**20
