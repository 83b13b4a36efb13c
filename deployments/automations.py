"""Automations on a Prefect server: a run whose process is gone without a word is marked as crashed; and a webhook.

`python -m prefect_regional_diffusion.deployments.automations` sets them up on the server of PREFECT_API_URL. The flow
`reap` does the rest. With `--webhook URL`, each event of a picture is posted there, too, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
from datetime import timedelta
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from prefect_regional_diffusion.flows.queueing.run_states import TAG, UPKEEP
from prefect_regional_diffusion.flows.server.local import use_auth_string
from prefect_regional_diffusion.tasks.ui.picture_events import PICTURE

TAGS = (TAG, UPKEEP)
"""Only runs with one of these tags are touched: others may have slower heartbeats."""

SILENCE = timedelta(seconds=240)
"""Longer than the reaper needs, and than a server is away for a restart: the reaper looks twice, this does not."""

_BLOCK = "regional-pictures"
"""Name of the block that keeps the webhook's address."""

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


def picture_webhook(block: UUID) -> AutomationCore:
    """What became of each picture, posted by the webhook of a block."""
    body = (
        '{"event": {{ event.event | tojson }}, "occurred": {{ event.occurred.isoformat() | tojson }}, '
        '"id": {{ event.id | string | tojson }}, "picture": {{ event.payload | tojson }}}'
    )
    return AutomationCore(
        name="regional: pictures to a webhook",
        description="Posts each event of a picture (finished, failed, given-up) as JSON.",
        trigger=EventTrigger(
            expect={f"{PICTURE}*"},
            match=ResourceSpecification({"prefect.resource.id": f"{PICTURE}*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=body)],
    )


async def ensure_automations(client: PrefectClient) -> None:
    """Create them; those that exist are brought up to date."""
    await _ensure(client, silent_runs())


async def ensure_webhook(client: PrefectClient, url: str) -> None:
    """Have events of pictures posted to an address. It may be a secret: it is kept in a block, encrypted."""
    block = Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})
    await _ensure(client, picture_webhook(await block.asave(_BLOCK, overwrite=True, client=client)))


async def _ensure(client: PrefectClient, automation: AutomationCore) -> None:
    existing = await client.read_automations_by_name(automation.name)
    if existing:
        await client.update_automation(existing[0].id, automation)
    else:
        await client.create_automation(automation)


async def _main(webhook: str | None) -> None:
    use_auth_string()
    async with get_client() as client:
        await ensure_automations(client)
        if webhook:
            await ensure_webhook(client, webhook)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prefect_regional_diffusion.deployments.automations",
        description="Set up what a Prefect server does by itself.",
    )
    parser.add_argument("--webhook", metavar="URL", help="where each event of a picture is posted to, as JSON")
    asyncio.run(_main(parser.parse_args().webhook))


if __name__ == "__main__":
    main()
