"""Time limits of runs: what tags say, and a run on a real server that takes too long, with what is stored of it."""

from __future__ import annotations

import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun

from prefect_regional_diffusion.flows.common.errors import TimeLimitError
from prefect_regional_diffusion.flows.common.time_limit import TimeLimit
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from prefect_regional_diffusion.flows.queueing.time_limit import checked_minutes, limit_tags, minutes_allowed
from prefect_regional_diffusion.sampling_core.errors import BadInput
from tests import forked
from tests.on_server import OnServer

JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 6}


@pytest.mark.parametrize(
    ("tags", "minutes"),
    [
        ([], None),
        (["regional", "owner:ann"], None),
        (["regional", *limit_tags(30)], 30.0),
        (limit_tags(0.25), 0.25),
        ([*limit_tags(90), *limit_tags(60)], 60.0),  # the deployment's, and whoever submits wants less
        ([*limit_tags(60), *limit_tags(90)], 60.0),  # or more
    ],
)
def test_the_least_that_tags_name_holds(tags: list[str], minutes: float | None) -> None:
    assert minutes_allowed(tags) == minutes
    assert limit_tags(None) == []


@pytest.mark.parametrize("text", ["", "soon", "nan", "0", "-5", "inf", "1e9", "5 5"])
def test_a_tag_that_names_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^the tag time-limit:…: .* is not allowed; allowed: minutes, more than 0 and"):
        minutes_allowed([f"time-limit:{text}"])


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf])
def test_a_number_that_is_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(BadInput, match=r"^--time-limit: "):
        checked_minutes("--time-limit", minutes)


def test_earlier_starts_count_and_a_finished_run_is_not_stopped() -> None:
    limit = TimeLimit(1, spent=timedelta(seconds=50))
    limit.check(1, 6)
    over = TimeLimit(1, spent=timedelta(seconds=61))
    with pytest.raises(TimeLimitError, match="time limit of 1 minutes is over, after 1 of 6 steps; they stay in the"):
        over.check(1, 6)
    over.check(6, 6)
    TimeLimit(None, spent=timedelta(days=9)).check(1, 6)


RUN = """
import asyncio, sys
from uuid import UUID
from prefect import get_client
from prefect.flow_engine import run_flow_async
from prefect_regional_diffusion.flows.render import render

async def main():
    async with get_client() as client:
        run = await client.read_flow_run(UUID(sys.argv[1]))
    await run_flow_async(render, flow_run=run, parameters=run.parameters)

asyncio.run(main())
"""


@pytest.mark.e2e
def test_a_run_that_takes_too_long_fails_and_the_next_one_goes_on(
    on_server: OnServer, env: dict[str, str], tmp_path: Path
) -> None:
    async def work(client: PrefectClient, deployment: UUID, _pool: str) -> None:
        parameters = {"job": JOB, "checkpoint_steps": 1, "name": "limited"}

        async def drawn(time_limit: float | None) -> tuple[FlowRun, str]:
            run, is_new = await submit_once(client, deployment, parameters, time_limit=time_limit)
            assert is_new
            done = forked.run([sys.executable, "-c", RUN, str(run.id)], cwd=tmp_path, env=env)
            return await client.read_flow_run(run.id), done.stderr

        # 60 microseconds. One chunk is drawn all the same: each new run gets on.
        run, said = await drawn(1e-6)
        assert run.state is not None, said
        assert run.state.is_failed(), said
        assert "its time limit of 1e-06 minutes is over, after 1 of 6 steps" in (run.state.message or "")
        run, said = await drawn(None)
        assert run.state is not None, said
        assert run.state.is_completed(), said
        # The deployment's limit is that of its runs, whatever is asked for.
        await client.update_deployment(deployment, DeploymentUpdate(tags=["regional", *limit_tags(5)]))
        for asked, minutes in ((None, 5), (9, 5), (2, 2)):
            run, _ = await submit_once(client, deployment, parameters, time_limit=asked, again=True)
            assert minutes_allowed(run.tags) == minutes

    on_server(work)
    (file,) = (tmp_path / "renders").glob("*.json")
    record = json.loads(file.read_text())
    assert (record["steps_restored"], record["steps_computed"]) == (1, 5)
