"""Automations on a Prefect server: a run whose process is gone without a word is marked as crashed.

`python -m prefect_regional_diffusion.deployments.automations` sets them up on the server of PREFECT_API_URL. The flow
`reap` does the rest.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from prefect_regional_diffusion.flows.server.local import use_auth_string

TAGS = ("regional", "regional-upkeep")
"""Only runs with one of these tags are touched: others may have slower heartbeats."""

SILENCE = timedelta(seconds=240)
"""Longer than the reaper needs, and than a server is away for a restart: the reaper looks twice, this does not."""

_ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "Scheduled", "AwaitingRetry", "Paused", "Suspended")


def silent_runs() -> AutomationCore:
    """A run that sent heartbeats, sends none any more, and has not ended."""
    message = "No heartbeat: its process is gone"
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)
    return AutomationCore(
        name="regional: silent run is crashed",
        description="No heartbeat of a run for four minutes: its process is gone, and so is its claim to the pool.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in _ENDED)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.id": [f"prefect.tag.{tag}" for tag in TAGS]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[crashed],
    )


async def ensure_automations(client: PrefectClient) -> None:
    """Create them; those that exist are brought up to date."""
    for automation in (silent_runs(),):
        existing = await client.read_automations_by_name(automation.name)
        if existing:
            await client.update_automation(existing[0].id, automation)
        else:
            await client.create_automation(automation)


async def _main() -> None:
    use_auth_string()
    async with get_client() as client:
        await ensure_automations(client)


if __name__ == "__main__":
    asyncio.run(_main())
