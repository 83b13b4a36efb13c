"""What stays in a store, by policy; and what may be thrown away later."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.flows.cli import store as cli_store
from prefect_regional_diffusion.sampling_core.engine.cache_keys import SegmentKey
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.machine.settings import Keep, settings
from prefect_regional_diffusion.tasks.runtime.job_inputs import FORMAT
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.retention import (
    DAY,
    RunRecord,
    begin,
    forget_branch_points,
    kind,
    runs,
    sizes,
    to_prune,
)
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.save_images import save_pictures
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.keys import Key
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.processes import ROOT


def hashed(word: str) -> str:
    """What names something in a store; the words are for people who read this."""
    return sha256(word.encode()).hexdigest()


BASE, ONE, TWO = SegmentKey(0, hashed("base")), SegmentKey(2, hashed("one")), SegmentKey(2, hashed("two"))
WORDS = {hashed(word): word for word in ("base", "one", "two", "open", "nobody", "p")}


ALL = {segment.name: range(1, 7) for segment in (BASE, ONE, TWO)}
"""Steps of states, by segment, of which a run's own are some."""


def known(*segments: SegmentKey, **changes: Any) -> RunRecord:
    facts: dict[str, Any] = {"name": "n", "job_hash": hashed("job"), "steps": 6, "segments": segments, "begun": 0.0}
    return RunRecord.model_validate(facts | changes)


def steps(states: AbstractSet[str]) -> list[int]:
    return sorted(int(Path(key).stem) for key in states)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("final", [6]), ("branch_points", [2, 6]), ("all", [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (3, [3, 6]), (100, [6])],
)
def test_policies(keep: Keep, kept: list[int]) -> None:
    assert steps(known(BASE, ONE).states(keep, ALL)) == kept


@given(st.integers(1, 50), st.integers(1, 60), st.sets(st.integers(1, 49)))
def test_the_final_state_always_stays(total: int, every: int, forks: set[int]) -> None:
    segments = [
        SegmentKey(first, hashed(f"c{first}")) for first in sorted({0} | {fork for fork in forks if fork < total})
    ]
    run, there = known(*segments, steps=total), {name: range(1, total + 1) for _, name in segments}
    for keep in ("final", "branch_points", "all", every):
        assert run.state(total) in run.states(keep, there) <= run.states("all", there)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two finished runs with a common beginning, an unfinished one, a state that nobody knows, and a prompt."""
    store = Store(str(tmp_path))
    old, now = time.time() - 10 * DAY, time.time()
    for name, run in {
        "one": known(BASE, ONE, begun=old, finished=old),
        "two": known(BASE, TWO, begun=now, finished=now),
        "open": known(BASE, SegmentKey(2, hashed("open")), begun=now),
    }.items():
        store.write_json(keys.run(hashed(name)), run.model_dump(mode="json"))
    states = {"base": (1, 2), "one": (3, 4, 5, 6), "two": (3, 4, 5, 6), "open": (3,), "nobody": (1,)}
    for name, steps_of in states.items():
        for step in steps_of:
            store.write_tensors(keys.state(f"{hashed(name)}/{step:05d}"), {"x": torch.zeros(2)})
    store.write_tensors(keys.prompt(hashed("p")), {"embedding": torch.zeros(2)})
    for file in tmp_path.rglob("*.*"):
        if not {hashed("two"), hashed("open")} & {*file.parts, file.stem}:
            os.utime(file, (old, old))
    return store


def in_words(keys: Iterable[Key | None]) -> set[str]:
    """Keys without extension, and with words in the place of hashes."""
    return {"/".join(WORDS.get(part, part) for part in str(key).partition(".")[0].split("/")) for key in keys}


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        # What run `two` has in common with run `one` stays, because `two` is young.
        ("branch_points", {"latents/nobody/00001", "latents/one/00003", "latents/one/00004", "latents/one/00005"}),
        ("all", {"latents/nobody/00001"}),
        (4, {"latents/nobody/00001", "latents/one/00003", "latents/one/00005"}),
        ("none", {"latents/nobody/00001", "prompts/p", "runs/one", *(f"latents/one/{n:05d}" for n in (3, 4, 5, 6))}),
    ],
)
def test_pruning_touches_old_runs_alone(store: Store, keep: Any, gone: set[str]) -> None:
    assert in_words({found.key for found in to_prune(store, keep, DAY)}) == gone


def test_an_abandoned_run_goes_when_it_is_old(store: Store) -> None:
    pruned = in_words({found.key for found in to_prune(store, "all", -DAY)})
    assert {"latents/open/00003", "latents/nobody/00001"} == pruned


FOREIGN = [
    "photo.png",
    "deep/er/report.json",
    "renders/two_halves-1234abcd.png",
    "pictures/two_halves-1234abcd.png",
    "pictures/grid-1234abcd/sheet.json",
    f"pictures/{hashed('mine')}.txt",
    "latents/mine/00001.safetensors",
    "latents/notes.txt",
    "runs/diary.json",
    f"models/{hashed('mine')}.safetensors",
    f"masks/{hashed('mine')}/00001.safetensors",
]


@pytest.mark.parametrize("keep", ["none", "final"])
def test_files_of_others_survive_every_pruning(store: Store, keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures below the store, and a prefix that was forgotten: only what the store itself has written goes."""
    folder, old = Path(store.url), time.time() - 10 * DAY
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        os.utime(folder / name, (old, old))
    settings.cache_clear()
    cli_store.prune(store.url, keep, older_than=1, as_json=True)
    removed = json.loads(capsys.readouterr().out)["objects"]
    assert removed == (7 if keep == "none" else 4)
    assert [name for name in FOREIGN if not (folder / name).exists()] == []
    assert sizes(store)["other"] == (len(FOREIGN), 2 * len(FOREIGN))


def test_everything_that_is_written_is_known_by_its_key(tmp_path: Path) -> None:
    """A kind that is missing there would never be pruned."""
    picture = str(next((ROOT / "examples" / "pictures").glob("*.png")))
    job = {"prompt": "a blue background", "steps": 4, "denoise": 0.5, "init_image": picture}
    os.environ["REGIONAL_ASSET_ROOTS"] = "/"
    prepared = prepare(parse_job(job))
    run = RenderContext(prepared, str(tmp_path))
    run.remember({run.mask_key: prepared.inputs.tensors, run.start_key: {"latent": torch.zeros(1)}})
    words = run.sampling_run.prompts[0]
    made = [run.mask_key, run.start_key, run.prompt_key(words), run.state_key(2)]
    kinds = [kind(keys.parsed(key.object_name)) for key in made]
    assert kinds == ["masks", "starts", "prompts", "latents"]
    begin(run, "a run")
    save_pictures(RunProgress(run, None), [b"a picture"])
    assert {name: number for name, (number, _) in sizes(run.store).items()} == {"pictures": 2, "runs": 1}


def test_what_a_writer_left_that_was_killed_is_the_stores_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for write in (lambda: store.write(keys.picture(hashed("p")), b""), store.check):
        with monkeypatch.context() as killed:
            killed.setattr("os.replace", die)
            with pytest.raises(KeyboardInterrupt):
                write()
    assert sorted(sizes(store)) == ["pictures", "probes"]
    assert len(to_prune(store, "none", -DAY)) == 2


def finished_forks(store: Store) -> set[str]:
    """Two drawn jobs that have a fork in common, with states at it, at their ends, and one more; their hashes."""
    hashes = {hashed("job one"), hashed("job two")}
    for word, segment in (("one", ONE), ("two", TWO)):
        run = known(BASE, segment, begun=1.0, finished=2.0, job_hash=hashed(f"job {word}"))
        store.write_json(keys.run(hashed(word)), run.model_dump(mode="json"))
        record = {"format": FORMAT, "job": {"prompt": "x"}, "files": {}, "job_hash": hashed(f"job {word}")}
        record |= {"model_fingerprint": hashed("m"), "latents": run.state(6), "run": f"runs/{hashed(word)}"}
        record |= {"pictures": [], "devices": [], "numerics": "cpu", "versions": {}}
        store.write_json(keys.drawn(hashed(f"job {word}")), record)
        for step in (2, 4, 6):
            store.write(run.state(step), b"")
    return hashes


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("final", {"base": [], "one": [4, 6], "two": [4, 6]}),
        ("branch_points", {"base": [2], "one": [4, 6], "two": [4, 6]}),
        ("all", {"base": [2], "one": [4, 6], "two": [4, 6]}),
        (2, {"base": [2], "one": [4, 6], "two": [4, 6]}),
        (3, {"base": [], "one": [4, 6], "two": [4, 6]}),
    ],
)
def test_forks_go_when_all_are_drawn(keep: Keep, left: dict[str, list[int]], tmp_path: Path) -> None:
    """Only those: everything else that a policy does not keep has gone with its shard."""
    store = Store(str(tmp_path))
    asyncio.run(forget_branch_points(store, finished_forks(store), keep))
    assert {word: [int(name) for name in store.names(keys.states(hashed(word)))] for word in left} == left


def test_the_forks_of_an_unfinished_run_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    hashes = finished_forks(store)
    for word, segment in (("one", ONE), ("two", TWO)):
        store.write_json(keys.run(hashed(word)), known(BASE, segment).model_dump(mode="json"))
    asyncio.run(forget_branch_points(store, hashes, "final"))
    assert store.names(keys.states(hashed("base"))) == ["00002"]


def test_listing_counts_what_is_there(store: Store) -> None:
    listed = {entry.key: entry.states for entry in runs(store)}
    assert listed == {keys.run(hashed(name)): count for name, count in {"one": 6, "two": 6, "open": 3}.items()}
    counted = {kind: number for kind, (number, _) in sizes(store).items()}
    assert counted == {"latents": 12, "prompts": 1, "runs": 3}
    assert sizes(store)["prompts"][1] == len(Path(f"{store.url}/prompts/{hashed('p')}.safetensors").read_bytes())


def test_a_damaged_run_counts_as_absent(store: Store) -> None:
    Path(f"{store.url}/runs/{hashed('one')}.json").write_text('{"name": 1')
    assert {entry.key for entry in runs(store)} == {keys.run(hashed(name)) for name in ("two", "open")}
