"""Who may write to a store can change pictures, and nothing else: no file outside is touched, and no run ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prefect_regional_diffusion.flows.common.chunking
from prefect_regional_diffusion.flows.cli import store as cli_store
from prefect_regional_diffusion.flows.common.chunking import sample_in_chunks
from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.merge import merge
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import all_rendered, pictures_of, record_of
from prefect_regional_diffusion.tasks.runtime.retention import (
    begin,
    finish,
    forget_branch_points,
    run_record_of,
    runs,
    sizes,
    to_prune,
)
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.sample import base_only_steps, regional_steps
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.planted import (
    FLOAT8,
    found,
    hashed,
    header_of,
    picture_record,
    placed,
    plant_record,
    ready,
    run_record,
    signed,
    sparse,
    tensor_file,
    whole_state,
)
from tests.s3 import KEY, SECRET, client, s3_server
from tests.watching import Memory, names_opened, paths_touched


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the store, with files that are called like those of a store."""
    for name in ("00001.safetensors", "00003.safetensors", "secret.txt", "record.json"):
        placed(tmp_path / "victim" / name, f"secret {name}".encode())
    return tmp_path / "victim"


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planted is no reason to try again for ten minutes."""
    monkeypatch.setenv("REGIONAL_ALLOWED_STORES", "*")

    def fail(seconds: float) -> None:
        raise AssertionError("a planted object is waited for")

    monkeypatch.setattr(
        "prefect_regional_diffusion.tasks.machine.retry.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=fail)
    )


def untouched(victim: Path, work: Callable[[], Any]) -> Any:
    """What `work` returns; it opens and removes nothing among the victim's files."""
    before = {file.name: file.read_bytes() for file in victim.iterdir()}
    with names_opened(victim) as opened, paths_touched() as touched:
        done = work()
    assert opened == []
    assert [path for path in touched if path.startswith(str(victim))] == []
    assert {file.name: file.read_bytes() for file in victim.iterdir()} == before
    return done


def counted_absent(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "counts as absent" in record.getMessage()]


# Point 3: names in records


@pytest.mark.parametrize("name", ["../../victim", "../victim", "{victim}", "x/../../../victim", "..", "."])
def test_a_run_record_names_no_folder_outside(root: Path, victim: Path, name: str) -> None:
    """It made a later batch delete what was called like a state there."""
    segments = [[0, name.format(victim=victim)], [1, hashed("one")]]
    plant_record(root, f"runs/{hashed('run')}", run_record(segments=segments))
    plant_record(root, f"pictures/{hashed('job')}", picture_record())
    store = Store(str(root))
    untouched(victim, lambda: asyncio.run(forget_branch_points(store, [hashed("job")], 2)))
    assert untouched(victim, lambda: runs(store)) == []
    untouched(victim, lambda: cli_store.prune(store.url, "none", older_than=0, as_json=True))


def test_a_record_of_another_job_is_no_reason_to_remove_states(root: Path) -> None:
    """Whoever plants a picture's record may name the run of anybody in it."""
    state = placed(root / "latents" / hashed("base") / "00001.safetensors", b"x")
    plant_record(root, f"runs/{hashed('run')}", run_record(job_hash=hashed("somebody's job")))
    plant_record(root, f"pictures/{hashed('job')}", picture_record())
    asyncio.run(forget_branch_points(Store(str(root)), [hashed("job")], "final"))
    assert state.exists()


def test_a_pictures_record_names_no_file_outside(root: Path, victim: Path) -> None:
    """It was read, and by reading copied to `out`."""
    secret = hashed("secret secret.txt")
    plant_record(
        root, f"pictures/{hashed('job')}", picture_record(pictures=[f"pictures/{secret}/../../../victim/secret.txt"])
    )
    (root / "pictures" / secret).mkdir()
    store = Store(str(root))
    assert untouched(victim, lambda: pictures_of(store, hashed("job"))) is None
    named = [NamedJob(name="a", job=parse_job({"prompt": "x"}))]
    out = root.parent / "out"
    merged = untouched(victim, lambda: asyncio.run(merge.fn(named, {"a": hashed("job")}, 1, str(root), str(out))))
    assert merged.missing == ["a"]
    assert {file.name for file in out.iterdir()} == {"sheet.png", "sheet.json"}


@pytest.mark.parametrize("run", ["../victim/record", "runs/../../victim/record", "runs/x"])
def test_a_pictures_record_names_no_other_record(root: Path, victim: Path, run: str) -> None:
    (victim / "record.json").write_text(json.dumps(run_record()))
    plant_record(root, f"pictures/{hashed('job')}", picture_record(run=run))
    store = Store(str(root))
    untouched(victim, lambda: asyncio.run(forget_branch_points(store, [hashed("job")], "final")))


def test_a_device_is_not_read_until_memory_is_full(root: Path) -> None:
    zero = f"pictures/{hashed('')}/../../../../../../../../../../dev/zero"
    (root / "pictures" / hashed("")).mkdir(parents=True)
    plant_record(root, f"pictures/{hashed('job')}", picture_record(pictures=[zero]))
    with paths_touched() as touched:
        assert pictures_of(Store(str(root)), hashed("job")) is None
    assert "/dev/zero" not in touched


@pytest.mark.parametrize("size", ["wide", "many", "same"])
def test_a_pictures_record_asks_for_no_more_than_a_job_may(
    root: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many pictures, or one many times, would all be in memory at once."""
    monkeypatch.setenv("REGIONAL_MAX_CANVAS_PIXELS", str(128 * 128))
    settings.cache_clear()
    pictures = [f"pictures/{hashed(f'{i}' if size == 'many' else '')}.png" for i in range(100)]
    job = {"prompt": "x", "width": 256} if size == "wide" else {"prompt": "x"}
    record = picture_record(job=job, pictures=[] if size == "wide" else pictures)
    plant_record(root, f"pictures/{hashed('job')}", record)
    assert record_of(Store(str(root)), hashed("job")) is None


def test_planted_pictures_are_not_in_memory_together(root: Path) -> None:
    """Sparse files take no room in a store, and a record may name as many as a job may have."""
    pictures = list[str]()
    for i in range(16):
        data = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II5B", 1024, 1024, 8, 2, 0, 0, 0) + bytes([i])
        digest = sha256(data + bytes(6 * 2**20)).hexdigest()
        sparse(root / f"pictures/{digest}.png", len(data) + 6 * 2**20)
        with (root / f"pictures/{digest}.png").open("r+b") as file:
            file.write(data)
        pictures.append(f"pictures/{digest}.png")
    job = {"prompt": "x", "width": 1024, "height": 1024}
    plant_record(root, f"pictures/{hashed('job')}", picture_record(job=job | {"batch_size": 16}, pictures=pictures))
    memory = Memory()
    assert asyncio.run(all_rendered(str(root), [hashed("job")])), "nobody who does not know the job can see it"
    assert memory.grown() < 48 * 2**20
    memory = Memory()
    assert pictures_of(Store(str(root)), hashed("job"), parse_job(job)) is None, "the job has one picture"
    assert memory.grown() < 48 * 2**20


def test_a_pictures_record_with_a_grid_of_large_pictures_is_absent(root: Path) -> None:
    node = {"name": "MaskGridNKSamplersAdvanced", "rows": 16, "columns": 16}
    job = {"prompt": "x", "width": 4096, "height": 4096, "composition": "sequential", "node": node}
    plant_record(root, f"pictures/{hashed('job')}", picture_record(job=job))
    assert record_of(Store(str(root)), hashed("job")) is None


# Point 3: links and what else is no file


def test_a_link_in_the_place_of_an_object_is_not_followed(root: Path, victim: Path, run: RenderContext) -> None:
    run.store.write_tensors(run.state_key(2), whole_state(run))
    file = root / f"{run.state_key(2)}.safetensors"
    (victim / "00003.safetensors").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(victim / "00003.safetensors")
    assert untouched(victim, lambda: found(run)).done == 0
    assert untouched(victim, lambda: drawn_again(run)) == 4
    assert not file.is_symlink()


def test_a_link_in_the_place_of_a_folder_is_not_followed(root: Path, victim: Path, run: RenderContext) -> None:
    """Nothing is read, listed, written or removed behind it, and states are stored all the same."""
    folder = root / run.folder_of(run.segments[0])
    folder.parent.mkdir()
    folder.symlink_to(victim)
    assert untouched(victim, lambda: sizes(run.store)).keys() == {"masks", "prompts"}
    assert untouched(victim, lambda: to_prune(run.store, "none", -1e9)) != []
    assert untouched(victim, lambda: found(run)).done == 0
    begun = begin(run, "n")
    untouched(victim, lambda: asyncio.run(finish({run: begun}, "final")))
    assert untouched(victim, lambda: drawn_again(run)) == 4
    assert not folder.is_symlink()
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("kind", ["masks", "prompts", "latents"])
def test_a_link_in_the_place_of_a_whole_kind_is_not_followed(
    root: Path, victim: Path, kind: str, run: RenderContext
) -> None:
    for file in (root / kind).glob("*"):
        file.unlink()
    if (root / kind).exists():
        (root / kind).rmdir()
    (root / kind).symlink_to(victim)
    again = untouched(victim, lambda: ready(root))
    assert untouched(victim, lambda: drawn_again(again)) == 4
    assert not (root / kind).is_symlink()


def plant_nothing(file: Path) -> None:
    file.write_bytes(b"")


def plant_folder(file: Path) -> None:
    (file / "deep").mkdir(parents=True)


def plant_pipe(file: Path) -> None:
    os.mkfifo(file)


def plant_loop(file: Path) -> None:
    file.symlink_to(file)


def plant_far_link(file: Path) -> None:
    file.symlink_to("/dev/zero")


def plant_sparse(file: Path) -> None:
    sparse(file, 20 * 2**30)


PLANTED = [plant_nothing, plant_folder, plant_pipe, plant_loop, plant_far_link, plant_sparse]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_object_counts_as_absent_and_is_replaced(
    root: Path, run: RenderContext, plant: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Of every kind: states, masks, prompts, records."""
    begin(run, "n")
    objects = [file for file in root.rglob("*") if file.is_file()]
    assert {file.parent.name for file in objects} >= {"masks", "prompts", "runs"}
    state = root / f"{run.state_key(2)}.safetensors"
    state.parent.mkdir(parents=True)
    for file in [*objects, state]:
        file.unlink(missing_ok=True)
        plant(file)
    memory = Memory()
    again = ready(root)
    assert found(again).done == 0
    assert run_record_of(again) is None
    assert len(counted_absent(caplog)) == len(objects) + 1
    for look in (cli_store.ls, cli_store.du):
        look(str(root), as_json=True)
    cli_store.prune(str(root), "final", older_than=1, as_json=True)
    begin(again, "n")
    assert drawn_again(again) == 4
    assert memory.grown() < 2**28
    caplog.clear()
    assert run_record_of(ready(root)) is not None
    assert counted_absent(caplog) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_somebody_elses_file_counts_as_absent(root: Path, run: RenderContext) -> None:
    run.store.write_tensors(run.state_key(2), whole_state(run))
    (root / f"{run.state_key(2)}.safetensors").chmod(0)
    assert found(run).done == 0
    assert drawn_again(run) == 4


# Point 4: tensors


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> RenderContext:
    monkeypatch.setattr(prefect_regional_diffusion.flows.common.chunking, "base_only_steps", base_only_steps.fn)
    monkeypatch.setattr(prefect_regional_diffusion.flows.common.chunking, "regional_steps", regional_steps.fn)
    return ready(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The state that the run has after two steps, whatever store it is for."""
    return whole_state(ready(tmp_path_factory.mktemp("store")))


def drawn_again(run: RenderContext) -> int:
    """Sample what the store does not have, as a flow does; the steps that it has then."""

    async def flow(progress: RunProgress) -> None:
        async with PendingWrites() as writes:
            await sample_in_chunks(RunBatch([progress]), 1, writes.all_pending(), writes, lambda: None)

    asyncio.run(flow(found(run)))
    return found(run).done


def changed(**tensors: Any) -> Callable[[dict[str, Any]], bytes]:
    """A state that says something else of some tensors, with the digest that belongs to it."""
    return lambda state: signed({name: value for name, value in (state | tensors).items() if value is not None})


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bytes]:
    def made(state: dict[str, Any]) -> bytes:
        header, data = header_of(signed(state))
        told = change(header)
        return tensor_file(header if told is None else told, data)

    return made


def of_type(kind: str, width: int) -> Callable[[dict[str, Any]], bytes]:
    """One tensor of a type that the store never writes."""
    return lambda _: tensor_file(
        {"__metadata__": {"sha256": "0" * 64}, "x": {"dtype": kind, "shape": [16], "data_offsets": [0, width]}},
        b"\0" * width,
    )


STATES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "bf16": of_type("BF16", 32),
    "f8": of_type("F8_E4M3", 16),
    "f4": of_type("F4", 8),
    "unknown type": of_type("F999", 16),
    "metadata null": with_header(lambda header: header | {"__metadata__": None}),
    "metadata list": with_header(lambda header: header | {"__metadata__": []}),
    "no metadata": with_header(lambda header: header.pop("__metadata__") and None),
    "digest of another type": with_header(lambda header: header | {"__metadata__": {"sha256": 7}}),
    "nested": lambda _: tensor_file(b"[" * 2000 + b"]" * 2000),
    "nested a little": lambda _: tensor_file(b'{"a":' * 300 + b"1" + b"}" * 300),
    "long number": lambda _: tensor_file(b'{"x":' + b"9" * 100_000 + b"}"),
    "short long number": lambda _: tensor_file(b'{"x":' + b"9" * 5000 + b"}"),
    "no text": lambda _: tensor_file(b"\xff\xfe" * 20),
    "surrogates": lambda _: tensor_file(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "list": lambda _: tensor_file([1, 2]),
    "header longer than the file": lambda _: b"\xff" * 8 + b"{}",
    "eight bytes": lambda _: b"\0" * 8,
    "negative shape": with_header(lambda header: header["x"].update(shape=[-1, -4, 8, 8])),
    "shape of floats": with_header(lambda header: header["x"].update(shape=[1.0, 4.0, 8.0, 8.0])),
    "shape of flags": with_header(lambda header: header["x"].update(shape=[True, 4, 8, 8])),
    "huge shape": with_header(lambda header: header["x"].update(shape=[1, 4, 8, 2**62])),
    "offsets outside": with_header(lambda header: header["x"].update(data_offsets=[0, 2**63])),
    "offsets overlap": with_header(
        lambda header: [entry.update(data_offsets=[0, 8]) for entry in list(header.values())[1:]] and None
    ),
    "no step": changed(step=None),
    "float step": changed(step=torch.tensor(2.0)),
    "step of another shape": changed(step=torch.tensor([2])),
    "another step": changed(step=torch.tensor(3)),
    "a far step": changed(step=torch.tensor(2**62)),
    "step before the beginning": changed(step=torch.tensor(-2)),
    "another type of latent": changed(x=torch.zeros(1, 4, 8, 8, dtype=torch.float64)),
    "whole numbers for a latent": changed(x=torch.zeros(1, 4, 8, 8, dtype=torch.int64)),
    "another latent": changed(x=torch.zeros(1, 4, 16, 16)),
    "not finite": changed(x=torch.full((1, 4, 8, 8), torch.nan)),
    "infinite": changed(x=torch.full((1, 4, 8, 8), torch.inf)),
    "one more": changed(more=torch.zeros(1)),
    "one more with much in it": changed(more=torch.zeros(2**20)),
    "no devices": changed(devices=None),
    "devices of floats": changed(devices=torch.zeros(9)),
    "devices without an end": changed(devices=torch.zeros(2**21, dtype=torch.uint8)),
    "history too long": changed(**{"solver.0.values": torch.zeros(9, 1, 4, 8, 8)}),
    "history without entries": changed(**{"solver.0.values": torch.zeros(0, 1, 4, 8, 8)}),
    "more predictions than levels": changed(**{"solver.0.values": torch.zeros(2, 1, 4, 8, 8)}),
    "levels at zero": changed(**{"solver.0.levels": torch.zeros(1, 2, dtype=torch.float64)}),
    "levels of the next step": changed(**{"solver.0.levels": torch.tensor([[1.0, 1e-300]], dtype=torch.float64)}),
    "no memory": changed(**{"solver.0.values": None, "solver.0.levels": None}),
}


@pytest.mark.parametrize("planted", STATES.values(), ids=STATES.keys())
def test_what_is_no_state_of_the_run_counts_as_absent(
    planted: Callable[[dict[str, Any]], bytes],
    root: Path,
    run: RenderContext,
    whole: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With one line; and the state is computed again, and then it is there."""
    file = placed(root / f"{run.state_key(2)}.safetensors", planted(dict(whole)))
    assert found(run).done == 0
    assert len(counted_absent(caplog)) == 1
    assert run.state_key(2) in counted_absent(caplog)[0]
    assert drawn_again(run) == 4
    caplog.clear()
    (file.parent / "00003.safetensors").unlink()
    (file.parent / "00004.safetensors").unlink()
    assert found(run).done == 2
    assert counted_absent(caplog) == []


def test_a_state_that_is_as_it_should_be_is_found(root: Path, run: RenderContext) -> None:
    """The states above are absent for what was changed in them."""
    placed(root / f"{run.state_key(2)}.safetensors", signed(whole_state(run)))
    assert found(run).done == 2


@pytest.mark.parametrize("kind", ["masks", "prompts"])
@pytest.mark.parametrize(
    "tensors",
    [
        {"0": torch.zeros(8, 9)},
        {"prompt_embeds": torch.zeros(1, 1, 1)},
        {"prompt_embeds": torch.zeros(10**6)},
        {"0": torch.full((8, 8), torch.nan)},
        FLOAT8,
    ],
)
def test_masks_and_prompts_of_another_shape_are_made_again(
    kind: str, tensors: dict[str, Any], root: Path, run: RenderContext, caplog: pytest.LogCaptureFixture
) -> None:
    files = list((root / kind).iterdir())
    for file in files:
        file.write_bytes(tensor_file({}) if tensors is FLOAT8 else signed(tensors))
    again = ready(root)
    assert len(counted_absent(caplog)) == len(files)
    assert {key: again.inputs[key].tolist() for key in again.inputs} == {k: run.inputs[k].tolist() for k in run.inputs}
    caplog.clear()
    assert ready(root).conditionings.keys() == run.conditionings.keys()
    assert counted_absent(caplog) == []


# Point 4: records


NOT_RECORDS: dict[str, Any] = {
    "no segments": run_record(segments=[]),
    "begun in no year": run_record(begun=1e300),
    "begun before": run_record(begun=-1e300),
    "begun never": b'{"name":"n","begun":NaN}',
    "endless": b'{"name":"n","begun":Infinity}',
    "finished in no year": run_record(finished=1e300),
    "many steps": run_record(steps=10**9),
    "half a step": run_record(steps=2.5),
    "no steps": run_record(steps=0),
    "one segment many times": run_record(steps=9000, segments=[[i, hashed("one")] for i in range(9000)]),
    "steps before": run_record(steps=-3),
    "segments backwards": run_record(segments=[[1, hashed("one")], [0, hashed("base")]]),
    "segments after the end": run_record(segments=[[0, hashed("base")], [9, hashed("one")]]),
    "a late beginning": run_record(segments=[[1, hashed("base")]]),
    "a long name": run_record(name="x" * 10_000),
    "another hash": run_record(job_hash="../" * 22),
    "one field more": run_record(more={"a": 1}),
    "list": [],
    "null": None,
    "text": "runs",
    "number": 7,
    "nested": b"[" * 100_000,
    "nested fields": b'{"a":' * 100_000,
    "long number": b'{"name":"n","steps":' + b"9" * 100_000 + b"}",
    "no text": b"\xff\xfe\xfa" * 100,
    "surrogate": b'{"name":"\\ud800"}',
    "nothing": b"",
    "zeros": b"\0" * 1000,
    "much": b" " * (10 * 2**20),
}


@pytest.mark.parametrize("record", NOT_RECORDS.values(), ids=NOT_RECORDS.keys())
def test_what_is_no_record_counts_as_absent(
    record: Any, root: Path, run: RenderContext, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """`store ls`, `du` and `prune` live through it, and runs write their own over it."""
    plant_record(root, f"runs/{hashed('planted')}", record)
    plant_record(root, run.key, record)
    plant_record(root, f"runs/{hashed('run')}", run_record())
    listed = [entry.key for entry in runs(run.store)]
    assert listed == [f"runs/{hashed('run')}"]
    for as_json in (False, True):
        cli_store.ls(str(root), as_json=as_json)
        cli_store.du(str(root), as_json=as_json)
        cli_store.prune(str(root), "final", older_than=1, dry_run=False, as_json=as_json)
    assert run_record_of(run) is None
    begun = begin(run, "n")
    assert run_record_of(run) == begun
    asyncio.run(finish({run: begun}, "final"))
    assert run_record_of(run) is not None
    plant_record(root, f"pictures/{hashed('job')}", record)
    assert record_of(run.store, hashed("job")) is None
    asyncio.run(forget_branch_points(run.store, [hashed("job")], "final"))


def test_a_record_with_a_million_steps_takes_no_memory(root: Path) -> None:
    """States are looked for among those that are there, not the other way round."""
    for i in range(20):
        plant_record(root, f"runs/{hashed(f'{i}')}", run_record(steps=10**6))
    memory = Memory()
    assert len(runs(Store(str(root)))) == 20
    assert to_prune(Store(str(root)), 1, 0) == []
    assert memory.grown() < 2**26


# Pictures that grids are merged from


def png(size: tuple[int, int], **options: Any) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new(options.get("mode", "RGB"), size).save(buffer, format="PNG")
    return buffer.getvalue()


def with_second_header(data: bytes, size: tuple[int, int]) -> bytes:
    """A file that names its size twice."""
    header = b"IHDR" + struct.pack(">II", *size) + data[24:29]
    return data[:33] + data[8:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize(
    ("data", "is_drawn"),
    [
        (png((128, 128)), True),
        (png((4096, 4096)), False),
        (png((128, 128), mode="L"), False),
        (b"no picture", False),
        (b"", False),
        (png((128, 128))[:-30], True),
        (with_second_header(png((128, 128)), (30_000, 30_000)), True),
    ],
    ids=["whole", "large", "grey", "text", "empty", "cut", "two sizes"],
)
def test_planted_pictures_end_no_grid(
    data: bytes, is_drawn: bool, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole or not, each has the name that its content should have."""
    from hashlib import sha256

    name = f"pictures/{sha256(data).hexdigest()}.png"
    placed(root / name, data)
    plant_record(root, f"pictures/{hashed('job')}", picture_record(pictures=[name]))
    named = [NamedJob(name="a", job=parse_job({"prompt": "x"}))]
    memory = Memory()
    merged = asyncio.run(merge.fn(named, {"a": hashed("job")}, 1, str(root), str(tmp_path / "out")))
    assert merged.missing == ([] if is_drawn else ["a"])
    assert memory.grown() < 2**27


def test_a_link_in_the_place_of_a_grids_folder_is_not_followed(root: Path, victim: Path, tmp_path: Path) -> None:
    """Folders of pictures are shared, too, and a grid's name is known beforehand."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "grid").symlink_to(victim)
    named = [NamedJob(name="a", job=parse_job({"prompt": "x"}))]
    untouched(victim, lambda: asyncio.run(merge.fn(named, {"a": hashed("job")}, 1, str(root), str(out / "grid"))))
    assert {file.name for file in (out / "grid").iterdir()} == {"sheet.png", "sheet.json"}


# An object store


def test_an_object_store_is_read_as_carefully(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than an object can have is asked for, in one request; what is empty is absent."""
    with s3_server(tmp_path, "latents") as port:
        endpoint = f"http://127.0.0.1:{port}"
        for name, value in {"ENDPOINT": endpoint, "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        settings.cache_clear()
        bodies = {"empty": b"", "large": b" " * (2**25), "good": json.dumps(run_record()).encode()}
        for word, body in bodies.items():
            client(endpoint).put_object(Bucket="latents", Key=f"x/runs/{hashed(word)}.json", Body=body)
        for key in (
            f"x//runs/{hashed('good')}.json",
            f"x/runs/{hashed('good')}.json/more",
            "x/runs/",
            f"x/runs/../{'a' * 64}.json",
        ):
            client(endpoint).put_object(Bucket="latents", Key=key, Body=b"{}")
        packed = gzip.compress(b" " * 2**28)
        client(endpoint).put_object(
            Bucket="latents", Key=f"x/runs/{hashed('packed')}.json", Body=packed, ContentEncoding="gzip"
        )
        store, memory = Store("s3://latents/x"), Memory()
        assert [entry.key for entry in runs(store)] == [f"runs/{hashed('good')}"]
        assert memory.grown() < 2**25
        assert sizes(store)["runs"][0] == 4
        assert sizes(store)["other"][0] >= 2
    asked = [line for line in (tmp_path / "s3.log").read_text().splitlines() if '"GET /latents/x/runs/' in line]
    assert len(asked) == 4
    assert sorted(line.split('"')[2].split()[0] for line in asked) == ["206", "206", "206", "416"]


# Point 8: who may look


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_what_lies_in_the_private_folder_is_its_owners_alone(
    umask: int, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store and an output folder there, and what is half written; elsewhere the process' umask counts."""
    modes: dict[str, list[int]] = {}
    replace = os.replace

    def seen(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        modes.setdefault("half", []).append(stat.S_IMODE(os.stat(source, dir_fd=src_dir_fd).st_mode))
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr("os.replace", seen)
    from prefect_regional_diffusion.tasks.storage.keys import output, run

    before = os.umask(umask)
    try:
        for url in (".regional/store", ".regional/out/grid", "shared/store"):
            Store(url).write_json(run(hashed("r")), {})
            Store(url).write(output("a.png"), b"x")
    finally:
        os.umask(before)
    for path in workdir.rglob("*"):
        mode, private = stat.S_IMODE(path.stat().st_mode), ".regional" in path.parts
        folder = path.is_dir()
        assert mode == ((0o700 if folder else 0o600) if private else (0o777 if folder else 0o666) & ~umask), path
    assert modes["half"] == [0o600] * 4 + [0o666 & ~umask] * 2
