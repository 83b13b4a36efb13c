"""What stays in a store, by policy; and what may be thrown away later."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampling_core.history import Named
from tasks.keeping import DAY, Known, runs, sizes, to_prune
from tasks.settings import Keep
from tasks.store import Store

BASE, ONE, TWO = Named(0, "base"), Named(2, "one"), Named(2, "two")


def known(*chapters: Named, **changes: Any) -> Known:
    facts: dict[str, Any] = {"name": "n", "job_hash": "h", "steps": 6, "chapters": chapters, "begun": 0.0}
    return Known.model_validate(facts | changes)


def steps(states: set[str]) -> list[int]:
    return sorted(int(Path(key).stem) for key in states)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("final", [6]), ("forks", [2, 6]), ("all", [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (3, [3, 6]), (100, [6])],
)
def test_policies(keep: Keep, kept: list[int]) -> None:
    assert steps(known(BASE, ONE).states(keep)) == kept


@given(st.integers(1, 50), st.integers(1, 60), st.sets(st.integers(1, 49)))
def test_the_final_state_always_stays(total: int, every: int, forks: set[int]) -> None:
    chapters = [Named(first, f"c{first}") for first in sorted({0} | {fork for fork in forks if fork < total})]
    run = known(*chapters, steps=total)
    for keep in ("final", "forks", "all", every):
        assert run.state(total) in run.states(keep) <= run.states("all")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two finished runs with a common beginning, an unfinished one, a state that nobody knows, and a prompt."""
    store = Store(str(tmp_path))
    old, now = time.time() - 10 * DAY, time.time()
    for name, run in {
        "one": known(BASE, ONE, begun=old, finished=old),
        "two": known(BASE, TWO, begun=now, finished=now),
        "open": known(BASE, Named(2, "open"), begun=now),
    }.items():
        store.write_json(f"runs/{name}", run.model_dump(mode="json"))
    for key in (*(f"base/{n:05d}" for n in (1, 2)), *(f"{c}/{n:05d}" for c in ("one", "two") for n in (3, 4, 5, 6))):
        store.write_tensors(f"latents/{key}", {"x": torch.zeros(2)})
    store.write_tensors("latents/open/00003", {"x": torch.zeros(2)})
    store.write_tensors("latents/nobody/00001", {"x": torch.zeros(2)})
    store.write_tensors("prompts/p", {"embedding": torch.zeros(2)})
    for file in tmp_path.rglob("*.*"):
        if "two" not in file.parts and file.stem not in {"two", "open"} and "open" not in file.parts:
            os.utime(file, (old, old))
    return store


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        # What run `two` has in common with run `one` stays, because `two` is young.
        ("forks", {"latents/nobody/00001", "latents/one/00003", "latents/one/00004", "latents/one/00005"}),
        ("all", {"latents/nobody/00001"}),
        (4, {"latents/nobody/00001", "latents/one/00003", "latents/one/00005"}),
        ("none", {"latents/nobody/00001", "prompts/p", "runs/one", *(f"latents/one/{n:05d}" for n in (3, 4, 5, 6))}),
    ],
)
def test_pruning_touches_old_runs_alone(store: Store, keep: Any, gone: set[str]) -> None:
    assert {found.key.rpartition(".")[0] for found in to_prune(store, keep, DAY)} == gone


def test_an_abandoned_run_goes_when_it_is_old(store: Store) -> None:
    keys = {found.key.rpartition(".")[0] for found in to_prune(store, "all", -DAY)}
    assert {"latents/open/00003", "latents/nobody/00001"} == keys


def test_listing_counts_what_is_there(store: Store) -> None:
    listed = {entry.key: entry.states for entry in runs(store)}
    assert listed == {"runs/one.json": 6, "runs/two.json": 6, "runs/open.json": 3}
    counted = {kind: number for kind, (number, _) in sizes(store).items()}
    assert counted == {"latents": 12, "prompts": 1, "runs": 3}
    assert sizes(store)["prompts"][1] == len(Path(f"{store.url}/prompts/p.safetensors").read_bytes())


def test_a_damaged_run_counts_as_absent(store: Store) -> None:
    Path(f"{store.url}/runs/one.json").write_text('{"name": 1')
    assert {entry.key for entry in runs(store)} == {"runs/two.json", "runs/open.json"}
