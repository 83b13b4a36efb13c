"""What runs where and what waits, as `regional top` shows it; on a real server, without workers that draw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolUpdate
from prefect.events import Event, RelatedResource, Resource
from prefect.events.clients import get_events_client
from prefect.states import Completed, Pending, Running
from rich.console import Console

from prefect_regional_diffusion.flows.cli.pool_tables import pool_tables
from prefect_regional_diffusion.flows.queueing.overview import Overview, PoolOverview, RunAtWork, RunThatWaits
from prefect_regional_diffusion.flows.queueing.run_states import UPKEEP
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from prefect_regional_diffusion.tasks.ui.progress_words import PROGRESS, progress_words, steps_in
from tests import forked
from tests.on_server import OnServer
from tests.processes import environment, regional
from tests.terminal import Terminal


def at_work(number: int, **fields: Any) -> RunAtWork:
    run = RunAtWork(uuid4(), f"render {number}", "ann", ("embedded",), "Running", "gpu 1", "", (number, 20), 61.0)
    return run._replace(**fields)


def waits(place: int, **fields: Any) -> RunThatWaits:
    return RunThatWaits(uuid4(), f"castle {place}", "bob", ("a/b/sdxl",), place, 40.0 * place, 3.0)._replace(**fields)


def pool(name: str = "gpu", running: Sequence[RunAtWork] = (), waiting: int = 0, **fields: Any) -> PoolOverview:
    overview = PoolOverview(name, False, ("gpu 1",), tuple(running), tuple(map(waits, range(1, waiting + 1))))
    return overview._replace(**fields)


def shown(pools: Sequence[PoolOverview], width: int = 80, lines: int | None = None) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(pool_tables(pools, width, lines))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_pool_with_runs_and_one_without() -> None:
    lines = shown([pool(running=[at_work(3)], waiting=1), pool("idle", workers=())])
    assert [" ".join(line.split()) for line in lines] == [
        "gpu: 1 worker, 1 at work, 1 waiting",
        "Run Owner Model Worker Step For",
        "render 3 ann embedded gpu 1 3/20 61 s",
        "Place Run Owner Model Begins in Waits",
        "1 castle 1 bob sdxl 40 s 3 s",
        "",
        "idle: no worker is there, 0 at work, 0 waiting",
    ]
    assert shown([]) == ["No work pool has workers or runs."]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_longer_than_the_terminal_and_what_counts_is_there(width: int) -> None:
    long = {"name": "a castle in the fog " * 9, "owner": "somebody with a long name", "models": ("x" * 90, "y")}
    running = [at_work(12, worker="the worker in the cellar", **long), at_work(1, seconds=7000.0, state="Cancelling")]
    gpu = pool(running=running, waiting=1)
    lines = shown([gpu._replace(waiting=tuple(run._replace(**long, seconds_left=1e5) for run in gpu.waiting))], width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("12/20", "61 s", "Cancelling", "1.9 h", "27.8 h", "a castle in the"):
        assert word in text


@pytest.mark.parametrize("lines", [24, 50])
@pytest.mark.parametrize("pools", [1, 2])
def test_three_hundred_that_wait_fit_into_the_terminal(lines: int, pools: int) -> None:
    text = shown([pool(str(number), map_running(8), 300) for number in range(pools)], lines=lines)
    assert lines - 6 <= len(text) <= lines
    assert sum("castle 1 " in line for line in text) == pools, "who is next is always there"
    hidden = 300 - sum("castle" in line for line in text) // pools
    assert text[-1].endswith(f"{hidden} more that wait")


def map_running(number: int) -> list[RunAtWork]:
    return list(map(at_work, range(number)))


def test_elsewhere_all_runs_are_shown() -> None:
    assert len(shown([pool(running=map_running(8), waiting=300)])) == 1 + 1 + 8 + 1 + 300


def test_what_others_wrote_is_text() -> None:
    hostile = "[red]\x1b[31m:boom:\nname"
    line = shown(
        [pool(running=[at_work(1, name=hostile, owner=hostile, worker=hostile, progress=hostile, steps=None)])]
    )
    assert not any("\x1b" in part for part in line)
    assert "[red]" in line[2]


@pytest.mark.parametrize(("jobs", "words"), [(1, "Step 3 of 20"), (4, "Step 3 of 20 in 4 jobs")])
def test_steps_are_read_as_they_are_written(jobs: int, words: str) -> None:
    assert progress_words(3, 20, jobs) == words
    assert steps_in(words) == (3, 20)
    assert steps_in("1 of 2 shards have ended") is None


async def submitted(client: PrefectClient, deployment: UUID, name: str, owner: str) -> UUID:
    parameters: dict[str, Any] = {"job": {"prompt": name, "model": f"models/{name}"}, "name": name}
    return (await submit_once(client, deployment, parameters, owner=owner)).run.id


async def taken_by(worker: str, run: UUID) -> None:
    """What a worker of Prefect's tells when it has taken a run."""
    named = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}
    event = Event(
        event="prefect.worker.submitted-flow-run",
        resource=Resource({"prefect.resource.id": f"prefect.worker.process.{worker}", "prefect.resource.name": worker}),
        related=[RelatedResource(named)],
    )
    async with get_events_client() as events:
        await events.emit(event)


async def eventually(look: Any, holds: Any) -> Any:
    """What is seen once it is as it should be: servers write events a moment later."""
    found = None
    for _ in range(300):
        if holds(found := await look()):
            return found
        await asyncio.sleep(0.1)
    return found


@pytest.mark.e2e
def test_a_pool_of_a_server(on_server: OnServer, tmp_path: Path, env: dict[str, str]) -> None:
    async def work(client: PrefectClient, deployment: UUID, name: str) -> None:
        ended = await submitted(client, deployment, "ended", "ann")
        first = await submitted(client, deployment, "first", "ann")
        about_to = await submitted(client, deployment, "about to", "ann")
        order = [("second", "ann"), ("third", "ann"), ("other", "bob")]
        runs = {who: await submitted(client, deployment, who, owner) for who, owner in order}
        for run in (ended, first):
            await client.set_flow_run_state(run, Running(), force=True)
        await client.set_flow_run_state(ended, Completed(), force=True)
        await client.set_flow_run_state(about_to, Pending(), force=True)
        _, upkeep = [await client.create_flow_run_from_deployment(deployment, tags=[UPKEEP]) for _ in range(2)]
        await client.set_flow_run_state(upkeep.id, Running(), force=True)
        await client.send_worker_heartbeat(name, "gpu here", heartbeat_interval_seconds=3600)
        # Once before it crashed, and once since: that counts.
        for words in ("Step 9 of 9", "Step 3 of 20"):
            bar = ArtifactCreate(key=PROGRESS, type="progress", data=15.0, description=words, flow_run_id=first)
            await client.create_artifact(bar)
        await taken_by("gpu here", first)
        overview = Overview(client)
        (seen,) = await eventually(lambda: overview.pools([name]), lambda pools: pools[0].at_work[0].worker)
        at_work, pending = seen.at_work
        # It has no name of its flow's yet.
        assert (pending.id, pending.name, pending.state, pending.worker) == (about_to, "about to", "Pending", "")
        assert (at_work.id, at_work.owner, at_work.models) == (first, "ann", ("models/first",))
        assert (at_work.worker, at_work.steps, at_work.state) == ("gpu here", (3, 20), "Running")
        assert 0 <= at_work.seconds < 120
        assert seen.workers == ("gpu here",)
        # Bob has none at work: he is first. Upkeep is not shown, and has a turn.
        assert [(run.name, run.id) for run in seen.waiting] == [
            (who, runs[who]) for who in ("other", "second", "third")
        ]
        assert len(seen.waiting) < max(run.place for run in seen.waiting) == 4
        left = [run.seconds_left for run in seen.waiting]
        assert None not in left
        assert left == sorted(left)
        await client.update_work_pool(name, WorkPoolUpdate(is_paused=True))

        def asked(*options: str) -> str:
            done = forked.run(regional("top", "--pool", name, *options), cwd=tmp_path, env=env)
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        (told,) = json.loads(await asyncio.to_thread(asked, "--json"))["pools"]
        assert (told["name"], told["is_paused"], told["workers"]) == (name, True, ["gpu here"])
        assert [(run["id"], run["steps"], run["worker"]) for run in told["at_work"]] == [
            (str(first), [3, 20], "gpu here"),
            (str(about_to), None, ""),
        ]
        assert [(run["name"], run["owner"]) for run in told["waiting"]] == [
            ("other", "bob"),
            ("second", "ann"),
            ("third", "ann"),
        ]
        places = [run["place"] for run in told["waiting"]]
        listing = await asyncio.to_thread(asked)
        assert listing.splitlines()[0] == f"{name}: 1 worker, 2 at work, 3 waiting, paused"
        assert [line.split()[:2] for line in listing.splitlines()[-3:]] == [
            [str(place), who] for place, who in zip(places, ("other", "second", "third"), strict=True)
        ]
        await asyncio.to_thread(watched, name, tmp_path, env)

    on_server(work)


def watched(name: str, tmp_path: Path, env: dict[str, str]) -> None:
    """In a terminal it goes on until Ctrl-C, and leaves it as it was."""
    terminal = Terminal(regional("top", "--pool", name), tmp_path, env, f"top {name}")
    try:
        terminal.until("two looks", lambda: terminal.text.count(f"{name}: 1 worker, 2 at work, 3 waiting, paused") >= 2)
        terminal.press_ctrl_c()
        assert terminal.wait(20) == 130
        assert terminal.text.splitlines()[-1].endswith("stopped; the runs go on")
        assert terminal.shown.count(b"\x1b[?1049h") == terminal.shown.count(b"\x1b[?1049l") == 1
    finally:
        terminal.close()


@pytest.fixture(params=[None, "http://127.0.0.1:9/api"], ids=["none", "gone"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], str]:
    """An environment without a server that answers, and what is said of it."""
    error = (
        "Prefect server http://127.0.0.1:9/api does not answer\n"
        if request.param
        else "PREFECT_API_URL: '' is not allowed; allowed: the address of a Prefect server"
    )
    return environment(tmp_path / "home", request.param), error


@pytest.mark.e2e
def test_without_a_server_it_says_so(nowhere: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, error = nowhere
    done = forked.run(regional("top"), cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


@pytest.mark.e2e
def test_a_pool_that_is_not_there_is_one_line(tmp_path: Path, env: dict[str, str]) -> None:
    done = forked.run(regional("top", "--pool", "moon", "--json"), cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--pool: 'moon' is not allowed; allowed: work pools that the server has\n"
