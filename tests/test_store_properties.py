"""Seven thousand stores that somebody wrote: nothing outside is touched, nothing ends, no memory beyond a bound.

Cases are made from a number, so one that fails is made again from that number alone. They go through what commands and
flows call, not through the readers alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch

from prefect_regional_diffusion.flows.cli import store as cli_store
from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.tensors.specs import specs_of
from prefect_regional_diffusion.tasks.merge import merge
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import pictures_of, record_of
from prefect_regional_diffusion.tasks.runtime.retention import (
    begin,
    finish,
    forget_branch_points,
    run_record_of,
    runs,
    to_prune,
)
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.keys import (
    BadKeyError,
    Folder,
    Key,
    LeftoverKey,
    OutputKey,
    PictureKey,
    RecordKey,
    TensorKey,
)
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.planted import (
    found,
    hashed,
    header_of,
    picture_record,
    placed,
    plant_record,
    ready,
    run_record,
    signed,
    tensor_file,
    whole_state,
)
from tests.processes import ROOT
from tests.watching import Memory, names_opened, paths_touched

MEMORY = 2**28
PLACES = [
    *("../../victim", "../victim/secret", "..", ".", "", "/", "/dev/zero", "/etc/passwd", "~", "victim", "\0", "a\0b"),
    *("latents", "latents/../..", "runs/../../victim", "x" * 300, "\ud800", "%2e%2e/victim", "file:///dev/zero", "\n"),
    *(
        hashed("base"),
        hashed("one"),
        hashed("one") + "\n",
        hashed("one").upper(),
        hashed("one")[:-1],
        "\uff10\uff10\uff10\uff10\uff11",
    ),
]
"""Strings in the place of names; among them some that are hashes."""
NUMBERS = [
    *(0, 1, -1, 2, 3, 10**9, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e300, -1e300, 253402300800),
    *(float("nan"), float("inf"), float("-inf")),
]


def value(rng: Random, depth: int = 0) -> Any:
    """Some JSON."""
    if depth < 3 and rng.random() < 0.3:
        some = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return some if rng.random() < 0.5 else {rng.choice(PLACES): one for one in some}
    return rng.choice([rng.choice(PLACES), rng.choice(NUMBERS), None, True, [], {}])


def mutated(rng: Random, told: Any) -> Any:
    """The same JSON with something else somewhere."""
    if isinstance(told, dict) and told and rng.random() < 0.85:
        name, change = rng.choice(sorted(told)), rng.random()
        if change < 0.08:
            return {key: one for key, one in told.items() if key != name}
        if change < 0.14:
            return told | {rng.choice(PLACES): value(rng)}
        return told | {name: mutated(rng, told[name])}
    if isinstance(told, list) and told and rng.random() < 0.8:
        at, change = rng.randrange(len(told)), rng.random()
        if change < 0.1:
            return told[:at] + told[at + 1 :]
        if change < 0.2:
            return told * rng.choice([2, 50])
        return [*told[:at], mutated(rng, told[at]), *told[at + 1 :]]
    return value(rng)


def damaged(rng: Random, data: bytes) -> bytes:
    """The same bytes, with something else somewhere; now and then without end."""
    at, change = rng.randrange(len(data) + 1), rng.random()
    if change < 0.3:
        return data[:at]
    if change < 0.6:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if change < 0.8:
        return (
            data[:at]
            + rng.choice([b"[" * 5000, b"9" * 5000, b'{"a":' * 2000, b"\xff", b"NaN", b"-", b"e999"])
            + data[at:]
        )
    return rng.choice([b"", b"\0", data * 3, b" " * 2**22, b"[" * 2**16, b'"' + b"x" * 2**20 + b'"', b"9" * 10**5])


def record(rng: Random, told: dict[str, Any]) -> Any:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        told = mutated(rng, told)
    return damaged(rng, json.dumps(told).encode()) if rng.random() < 0.25 else told


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store; also the working directory, so that a name without folder is one below it."""
    (tmp_path / "store").mkdir()
    for name in ("00001.safetensors", "00003.safetensors", "secret.json", "secret"):
        placed(tmp_path / "victim" / name, b"secret")
    monkeypatch.chdir(tmp_path / "store")
    monkeypatch.setenv("REGIONAL_ALLOWED_STORES", "*")

    def fail(_: float) -> None:
        raise AssertionError("a planted object is waited for")

    monkeypatch.setattr("prefect_regional_diffusion.tasks.machine.retry.time.sleep", fail)
    return tmp_path / "store"


@contextmanager
def nothing_else(root: Path) -> Generator[None]:
    """Nothing is touched meanwhile but the store, and `out` beside it; and memory is bounded."""
    allowed = (
        str(root),
        str(root.parent / "out"),
        sys.prefix,
        sys.base_prefix,
        str(ROOT),
        "/proc/self/",
        "/sys/",
        "/usr/",
    )
    memory, victim = Memory(), root.parent / "victim"
    with names_opened(victim) as opened, paths_touched() as touched:
        yield
    assert opened == []
    parents = {str(path) for path in [root.parent, *root.parent.parents]}
    others = {path for path in touched if not path.startswith(allowed) and path not in parents}
    assert {path for path in others if "/site-packages/" not in path} == set()
    assert [file.read_bytes() for file in victim.iterdir()] == [b"secret"] * 4
    assert memory.grown() < MEMORY


@contextmanager
def case(number: int, told: Any = "all of them") -> Generator[None]:
    """Whatever is raised meanwhile is said with the case."""
    try:
        yield
    except BaseException as error:
        shown = told if isinstance(told, bytes) else json.dumps(told)
        raise AssertionError(f"case {number}: {shown[:2000]!r}") from error


@pytest.mark.parametrize("part", range(5))
def test_records_of_runs(part: int, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two thousand, with the states that some of them name, through ls, du and prune."""
    store = Store(str(root))
    for segment in ("base", "one"):
        for step in (1, 2, 3):
            placed(root / "latents" / hashed(segment) / f"{step:05d}.safetensors", b"x")
    with nothing_else(root), case(part):
        for number in range(400 * part, 400 * part + 400):
            plant_record(root, f"runs/{hashed(f'{number}')}", record(Random(number), run_record()))
        for entry in runs(store):
            assert 0 <= entry.run.steps <= 10**6
            assert entry.states <= 6
            json.dumps(entry.run.model_dump(mode="json"), allow_nan=False)
        for as_json in (True, False):
            cli_store.ls(str(root), as_json=as_json)
            cli_store.du(str(root), as_json=as_json)
        for keep in ("final", "none"):
            cli_store.prune(str(root), keep, older_than=0, as_json=True)
    capsys.readouterr()


@pytest.mark.parametrize("part", range(4))
def test_records_of_pictures(part: int, root: Path, tmp_path: Path) -> None:
    """Sixteen hundred, with records of runs that are changed as well, through what ends a grid or batch."""
    store, job = Store(str(root)), parse_job({"prompt": "x"})
    picture, named = hashed("x"), [NamedJob(name="a", job=job)]
    placed(root / "pictures" / f"{picture}.png", b"x")
    (root / "pictures" / picture).mkdir()
    whole = picture_record(
        pictures=[f"pictures/{picture}.png"],
        devices=[{"first": 1, "last": 3, "device": "cpu"}],
        files={"model": {"name": "embedded", "sha256": hashed("m")}},
    )
    with nothing_else(root):
        for number in range(400 * part, 400 * part + 400):
            rng = Random(number)
            told = record(rng, whole)
            plant_record(root, f"pictures/{hashed('job')}", told)
            plant_record(root, f"runs/{hashed('run')}", record(rng, run_record()) if number % 2 else run_record())
            with case(number, told):
                drawn = record_of(store, hashed("job"))
                assert drawn is None or all(isinstance(keys.parsed(key), PictureKey) for key in drawn.pictures)
                assert pictures_of(store, hashed("job"), job) is None or (drawn is not None and drawn.pictures == ())
                if number % 4 == 0:
                    asyncio.run(forget_branch_points(store, [hashed("job")], rng.choice(["final", 2])))
                if number % 40 == 0:
                    asyncio.run(merge.fn(named, {"a": hashed("job")}, 1, str(root), str(tmp_path / "out" / "grid")))


@pytest.fixture
def run(root: Path) -> RenderContext:
    return ready(root)


def changed_header(rng: Random, file: bytes) -> bytes:
    header, data = header_of(file)
    name = rng.choice(sorted(header))
    change = rng.random()
    if change < 0.2:
        header["__metadata__"] = value(rng)
    elif change < 0.4:
        header[name] = value(rng)
    elif change < 0.9 and name != "__metadata__":
        field = rng.choice(["dtype", "shape", "data_offsets"])
        kinds = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "I64", "U8", "BOOL", "C64", "", "F" * 99]
        header[name][field] = rng.choice(kinds) if field == "dtype" else mutated(rng, header[name][field])
    else:
        header[rng.choice(PLACES)] = rng.choice([header.pop(name), value(rng)])
    told = json.dumps(header).encode()
    return tensor_file(damaged(rng, told) if rng.random() < 0.1 else told, data)


def changed_tensors(rng: Random, state: dict[str, Any]) -> bytes:
    """Other tensors, with the digest that belongs to them."""
    told = dict(state)
    name = rng.choice(sorted(told))
    shapes: list[list[int]] = [[], [0], [1], [2, 2], [1, 4, 8, 8], [2, 1, 4, 8, 8], [1, 2], [3, 2], [64]]
    made = torch.zeros(rng.choice(shapes), dtype=rng.choice([torch.float32, torch.float64, torch.int64, torch.uint8]))
    told[rng.choice([name, name, "more", "solver.1.values", "inside.step"])] = made + rng.choice([0, 1, 2])
    if rng.random() < 0.2:
        told.pop(name, None)
    return signed(told)


@pytest.mark.parametrize("part", range(4))
def test_tensors(part: int, root: Path, run: RenderContext) -> None:
    """Two thousand states, through the search for the newest one: what is found is a state that can be continued."""
    state = whole_state(run)
    whole, folder = signed(state), root / run.folder_of(run.segments[-1])
    specs = run.sampling_run.specs(2) | {"devices": specs_of(state)["devices"]}
    begin(run, "n")
    with nothing_else(root):
        for number in range(500 * part, 500 * part + 500):
            rng = Random(number)
            way = rng.random()
            if way < 0.5:
                told = changed_header(rng, whole)
            else:
                told = damaged(rng, whole) if way < 0.75 else changed_tensors(rng, state)
            placed(folder / "00002.safetensors", told)
            with case(number, told):
                read = run.store.read_tensors(run.state_key(2), specs)
                assert read is None or specs_of(read).keys() == specs.keys()
                progress = found(run) if number % 5 == 0 or read is not None else None
                if progress is not None and progress.done:
                    assert read is not None
                    RunBatch([progress]).advance(1)
        with case(part):
            asyncio.run(finish({run: begin(run, "n")}, "final"))
    assert run_record_of(run) is not None


def key_like(rng: Random) -> str:
    """A string that is a key, or looks like one."""
    kind = rng.choice(["latents", "masks", "prompts", "starts", "runs", "pictures", "probe", "x", "..", "", "/latents"])
    name = rng.choice([hashed("a"), hashed("b"), *PLACES])
    last = rng.choice(["00001", "1", "99999999", "9" * 30, "..", "", "0000\u0661", "00001\n"])
    end = rng.choice(
        [".safetensors", ".json", ".png", "", ".part", f".{'0' * 32}.part", ".safetensors/", "\n", ".SAFETENSORS"]
    )
    text = rng.choice(
        [f"{kind}/{name}/{last}{end}", f"{kind}/{name}{end}", f"{kind}/.{name}{end}", f"probe-{'0' * 32}{end}"]
    )
    if rng.random() < 0.3 and text:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["/", "../", "\0", ".", "a", "\\", "\u2028", ""]) + text[at + rng.randrange(2) :]
    return text


def test_keys(root: Path) -> None:
    """Fifteen hundred strings: what is taken for a key lies below the store, and nothing else gets through."""
    store, taken = Store(str(root)), 0
    with nothing_else(root):
        for number in range(1500):
            text = key_like(Random(number))
            for kind in (TensorKey, RecordKey, PictureKey, LeftoverKey, OutputKey, Folder):
                try:
                    made = kind(text)
                except BadKeyError:
                    continue
                taken += 1
                path = os.path.normpath(root / made.object_name)
                assert path == str(root / made.object_name) or made == "", f"case {number}: {text!r}"
                assert path.startswith(str(root)), f"case {number}: {text!r}"
                assert made.isascii() or kind is OutputKey, f"case {number}: {text!r}"
                with case(number, text):
                    assert made == "" or store.read(made, 10) is None
                    assert store.names(cast("Folder", made)) == []
            again = keys.parsed(text)
            assert again is None or again.object_name == text, f"case {number}: {text!r}"
            uses: Any = ((store.read, (text, 1)), (store.remove, ([text],)), (store.names, (text,)))
            for use, given in uses:
                with pytest.raises((StoreError, TypeError)):
                    use(*given)
    assert taken > 100


@pytest.mark.parametrize("seed", range(60))
def test_folders_full_of_anything(seed: int, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links, pipes, deep and strange folders where objects should be: what is written is found, listed and pruned."""
    rng, store = Random(seed), Store(str(root))
    targets = [root.parent / "victim", root.parent / "victim" / "secret", "/dev/zero", "/etc", "..", ".", root / "loop"]
    names = [
        "latents",
        "runs",
        "pictures",
        "masks",
        hashed("base"),
        f"{hashed('run')}.json",
        "00001.safetensors",
        "\udcff",
    ]
    for _ in range(30):
        place = root.joinpath(*rng.choices(names, k=rng.randrange(1, 4)))
        above = [folder for folder in place.parents if root in folder.parents]
        if os.path.lexists(place) or any(
            os.path.lexists(one) and not stat.S_ISDIR(one.lstat().st_mode) for one in above
        ):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        match rng.randrange(5):
            case 0:
                place.symlink_to(rng.choice(targets))
            case 1:
                os.mkfifo(place)
            case 2:
                place.mkdir()
            case 3:
                place.write_bytes(rng.randbytes(9))
            case _:
                place.joinpath(*["d"] * 40).mkdir(parents=True)
    with nothing_else(root), case(seed):
        for look in (cli_store.ls, cli_store.du):
            look(str(root), as_json=rng.random() < 0.5)
        to_prune(store, "none", -1e9)
        for word in ("base", "one"):
            key = keys.state(f"{hashed(word)}/00001")
            store.write_tensors(key, {"x": torch.zeros(1)})
            assert store.read_tensors(key, specs_of({"x": torch.zeros(1)})) is not None
        store.write_json(keys.run(hashed("run")), run_record())
        assert [entry.key for entry in runs(store)] == [f"runs/{hashed('run')}"]
        cli_store.prune(str(root), "none", older_than=0, as_json=True)
    capsys.readouterr()


def test_a_string_is_no_key(root: Path) -> None:
    assert not isinstance("runs/" + hashed("a"), Key)
    with pytest.raises(BadKeyError):
        keys.run("../x")
    with pytest.raises(BadKeyError):
        keys.output("../x.png")
