"""Shards as runs of a server, without one: which are started, which are found again, and when they count as ended."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
import torch
from PIL import Image
from prefect.client.schemas.objects import FlowRun, State, StateType

import prefect_regional_diffusion.flows.fan_out.render_many
import prefect_regional_diffusion.flows.fan_out.shard_runs
from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.flows.common.errors import IncompleteRenderError
from prefect_regional_diffusion.flows.fan_out.render_many import Places, ShardingOptions, draw
from prefect_regional_diffusion.flows.fan_out.shard_runs import ShardRequest, run_shards
from prefect_regional_diffusion.flows.queueing.run_states import GIVEN_UP
from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.merge import MergeResult
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import all_rendered
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.save_images import save_pictures
from tests.processes import ROOT


def state(kind: StateType, name: str = "", age: float = 0) -> State:
    return State(type=kind, name=name or kind.capitalize(), timestamp=datetime.now(UTC) - timedelta(seconds=age))


COMPLETED, FAILED = state(StateType.COMPLETED), state(StateType.FAILED)
GIVEN_UP_NOW = state(StateType.CRASHED, GIVEN_UP)


class Server:
    """As much of a server as shards need. A run is at work until it is looked at `looks` times; then it `ends`."""

    def __init__(self) -> None:
        self.runs: dict[str, FlowRun] = {}
        self.ends: State | None = COMPLETED
        self.looks = 1
        self.looked = 0
        self.starts = 1
        self.shown: list[str] = []

    async def started(
        self, _deployment: str, *, idempotency_key: str, flow_run_name: str, tags: list[str], **_: Any
    ) -> FlowRun:
        now = state(StateType.RUNNING)
        running = FlowRun(id=uuid4(), flow_id=uuid4(), name=flow_run_name, state=now, tags=tags)
        return self.runs.setdefault(idempotency_key, running)

    async def show(self, _done: int, _of: int, words: str) -> None:
        if words not in self.shown:
            self.shown.append(words)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def read_flow_runs(self, *, flow_run_filter: Any, limit: int) -> list[FlowRun]:
        self.looked += 1
        assert self.looked < 100, "waited for ever"
        if self.looked >= self.looks:
            for run in self.runs.values():
                run.state = self.ends if run.state is not None and run.state.is_running() else run.state
        there: set[UUID] = set(flow_run_filter.id.any_)
        return [run for run in self.runs.values() if run.id in there and run.state is not None]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    parent = SimpleNamespace(
        get_id=lambda: "parent",
        get_name=lambda: "grid",
        get_run_count=lambda: server.starts,
        get_tags=lambda: ["regional", "mine", "owner:ann"],
    )
    monkeypatch.setattr(prefect_regional_diffusion.flows.fan_out.shard_runs, "arun_deployment", server.started)
    monkeypatch.setattr(prefect_regional_diffusion.flows.fan_out.shard_runs, "get_client", lambda: server)
    monkeypatch.setattr(prefect_regional_diffusion.flows.fan_out.shard_runs, "ProgressArtifact", lambda: server)
    monkeypatch.setattr(prefect_regional_diffusion.flows.fan_out.shard_runs, "flow_run", parent)
    return server


class Pictures:
    """Whether the pictures of each part are in the store."""

    def __init__(self, *keys: str) -> None:
        self.there = dict.fromkeys(keys, True)

    def parts(self) -> list[ShardRequest]:
        async def drawn(key: str) -> bool:
            return self.there[key]

        return [ShardRequest({"jobs": []}, key, lambda key=key: drawn(key)) for key in self.there]


def shards(pictures: Pictures, crash_timeout_seconds: float = 1000) -> list[str]:
    """The names of shards that did not complete."""
    return asyncio.run(run_shards(pictures.parts(), 0, crash_timeout_seconds))


def test_shards_have_the_owner_of_their_parent(server: Server) -> None:
    assert shards(Pictures("a")) == []
    assert [run.tags for run in server.runs.values()] == [["regional", "owner:ann"]]


def test_what_is_drawn_or_at_work_is_found_again(server: Server) -> None:
    pictures = Pictures("a", "b")
    assert shards(pictures) == []
    assert list(server.runs) == ["parent/a/1", "parent/b/1"]
    assert server.shown == ["0 of 2 shards have ended", "2 of 2 shards have ended"]
    server.starts = 5
    server.runs["parent/b/1"].state = state(StateType.RUNNING)
    assert shards(pictures) == []
    assert list(server.runs) == ["parent/a/1", "parent/b/1"], "a healthy shard was started twice"


@pytest.mark.parametrize("ended", [COMPLETED, FAILED, GIVEN_UP_NOW], ids=["pictures gone", "failed", "given up"])
def test_a_part_that_is_not_drawn_gets_one_more_run_each_time(ended: State, server: Server) -> None:
    """Its shard failed; or it completed, and then pictures were damaged, pruned or written elsewhere."""
    pictures = Pictures("a", "b")
    shards(pictures)
    pictures.there["b"] = False
    for start in (2, 3):
        server.starts = start
        server.runs[f"parent/b/{start - 1}"].state = ended
        assert shards(pictures) == []
        assert list(server.runs)[1:] == [f"parent/b/{attempt}" for attempt in range(1, start + 1)]


def test_a_shard_that_somebody_deleted_is_started_again(server: Server) -> None:
    shards(Pictures("a"))
    deleted = server.runs.pop("parent/a/1")
    server.starts = 2
    assert shards(Pictures("a")) == []
    assert server.runs["parent/a/1"].id != deleted.id


def test_other_jobs_get_another_run(server: Server) -> None:
    """As when files were added between two starts of a batch: the place in the row says nothing."""
    shards(Pictures("a", "b"))
    server.starts = 2
    assert shards(Pictures("new", "a", "b")) == []
    assert list(server.runs) == ["parent/a/1", "parent/b/1", "parent/new/1"]


@pytest.mark.parametrize("ended", [FAILED, GIVEN_UP_NOW, None], ids=["failed", "given up", "deleted"])
def test_what_nobody_goes_on_with_has_ended_at_once(ended: State | None, server: Server) -> None:
    server.ends = ended
    assert shards(Pictures("a")) == ["shard 1 of grid"]
    assert server.looked == 1


def test_a_crashed_shard_may_be_started_again_by_others(server: Server) -> None:
    """It is waited for, until the crash is too old."""
    server.ends = state(StateType.CRASHED, age=50)
    with pytest.raises(AssertionError, match="waited for ever"):
        shards(Pictures("a"), crash_timeout_seconds=1000)
    server.looked = 0
    assert shards(Pictures("a"), crash_timeout_seconds=49) == ["shard 1 of grid"]


JOB = parse_job({"prompt": "a blue background", "steps": 2})
JOBS = [NamedJob(name="one", job=JOB), NamedJob(name="two", job=JOB.model_copy(update={"seed": 5}))]


def test_a_parts_key_stands_for_all_that_makes_its_pictures() -> None:
    hashes, places = {"one": "1", "two": "2"}, Places(None, None, None)

    def key(jobs: list[NamedJob] = JOBS, places: Places = places, **changed: str) -> str:
        return prefect_regional_diffusion.flows.fan_out.render_many._part(jobs, hashes | changed, places, "store").key

    others = [
        key(JOBS[:1]),
        key([JOBS[0].model_copy(update={"job": JOBS[1].job}), JOBS[1]]),
        key(two="another image under the same name"),
        key(places=Places("elsewhere", None, None)),
        key(places=Places(None, None, "all")),
    ]
    assert len({key(), *others}) == 6
    assert key() == key(places=Places(None, "where the sheet goes", None))


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> dict[str, Any]:
    """What `draw` asks of others: `here` or `shards`, the number of parts. `missing` and `unfinished` are answers."""
    asked: dict[str, Any] = {"missing": [], "unfinished": []}

    async def here(jobs: list[NamedJob], **_: Any) -> dict[str, Any]:
        asked["here"] = asked.get("here", 0) + 1
        return {}

    async def on_machines(parts: list[ShardRequest], *_: Any) -> list[str]:
        asked["shards"] = len(parts)
        return asked["unfinished"]

    async def merge(*_: Any) -> MergeResult:
        return MergeResult(sheet="sheet.png", images={}, missing=asked["missing"])

    for name, replacement in {
        "render_many.draw_shard": here,
        "render_many.merge": merge,
        "render_many.check_all": lambda jobs, drawn_here: {named.name: named.name for named in jobs},
        "shard_runs.run_shards": on_machines,
        "shard_runs.check_server": lambda _: None,
    }.items():
        monkeypatch.setattr(f"prefect_regional_diffusion.flows.fan_out.{name}", replacement)
    return asked


def drawn(parallel_shards: int | None = None, out: str | None = None) -> dict[str, Any]:
    return asyncio.run(draw(JOBS, "grid", 2, Places(None, out, None), ShardingOptions(parallel_shards, 1, 1)))


def in_a_run(monkeypatch: pytest.MonkeyPatch, deployment: UUID | None) -> None:
    context = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=deployment))
    monkeypatch.setattr("prefect.context.FlowRunContext.get", lambda: context)


def test_a_run_of_a_deployment_never_draws_itself(drawing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty field of the form must not load a model on the control machine; a person's own process draws."""
    drawn()
    assert drawing.pop("here") == 2
    in_a_run(monkeypatch, uuid4())
    drawn()
    assert drawing.pop("shards") == 2
    drawn(parallel_shards=2)
    assert drawing.pop("shards") == 2
    assert "here" not in drawing


def test_what_is_missing_is_said_with_the_reason(drawing: dict[str, Any]) -> None:
    drawing["missing"], drawing["unfinished"] = ["one"], ["shard 1 of grid"]
    with pytest.raises(
        IncompleteRenderError, match=r"^not drawn: one \(shard 1 of grid did not complete\); start the run again"
    ):
        drawn(parallel_shards=1)
    drawing["unfinished"] = []
    with pytest.raises(IncompleteRenderError, match=r"^not drawn: one \(not found whole in .*store\)"):
        drawn(parallel_shards=1)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_drawn(drawing: dict[str, Any]) -> None:
    Path("renders").write_text("a file")
    with pytest.raises(StoreError, match=r"^out renders is no folder, or has a file where a folder should be: "):
        drawn()
    assert "here" not in drawing


@pytest.mark.parametrize("place", ["store", "out"])
def test_one_picture_needs_both_places_before_its_model(
    place: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"REGIONAL_{place.upper()}", "/proc/no/such/place")
    with pytest.raises(StoreError, match=rf"^{place} /proc/no/such/place does not exist: FileNotFound"):
        asyncio.run(render.fn(JOB))
    if place == "store":
        with pytest.raises(StoreError, match=r"^store /proc/no/such/place "):
            asyncio.run(shard.fn(JOBS))


@pytest.fixture
def kept(workdir: Path) -> Callable[[NamedJob], str]:
    """Puts the picture of a job into the store `s`; returns the job's hash."""

    def keep(named: NamedJob) -> str:
        prepared = prepare(named.job)
        run = RenderContext(prepared, "s")
        run.remember({run.mask_key: prepared.inputs.tensors or {"none": torch.zeros(1)}})
        picture = io.BytesIO()
        Image.new("RGB", (named.job.width, named.job.height)).save(picture, format="PNG")
        save_pictures(RunProgress(run, None), [picture.getvalue()])
        return run.job_hash

    return keep


def test_only_whole_pictures_count_as_drawn(kept: Callable[[NamedJob], str]) -> None:
    hashes = [kept(named) for named in JOBS]
    assert asyncio.run(all_rendered("s", hashes))
    assert not asyncio.run(all_rendered("s", [*hashes, "0" * 64]))
    next(Path("s/pictures").glob("*.png")).write_bytes(b"damaged")
    assert not asyncio.run(all_rendered("s", hashes))


def test_the_command_line_says_in_one_line_what_is_missing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: Any) -> None:
        raise IncompleteRenderError("not drawn: r0c0 (shard 1 of grid did not complete); start the run again")

    monkeypatch.setattr("prefect_regional_diffusion.flows.fan_out.draw_grid.draw_grid", fail)
    monkeypatch.setattr(
        "sys.argv", ["regional", "grid", str(ROOT / "examples/grids/seeds.yaml"), "--parallel-shards", "2"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "not drawn: r0c0 (shard 1 of grid did not complete); start the run again\n")
