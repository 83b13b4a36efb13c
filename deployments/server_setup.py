"""What a server needs before it has deployments: work pools, automations, and the forms of blocks."""

from __future__ import annotations

from prefect.client.orchestration import get_client

from prefect_regional_diffusion.deployments.automations import ensure_automations
from prefect_regional_diffusion.deployments.pools import ensure_pool, fixed_template
from prefect_regional_diffusion.tasks.machine.blocks import ModelCatalog, RegionalStore


async def set_up_server() -> None:
    """Make what is missing on the server that Prefect's settings name. Its pool `gpu` takes one run at a time."""
    base = fixed_template("process")
    async with get_client() as client:
        await ensure_pool(client, "control", "process", base, limit=None)
        await ensure_pool(client, "gpu", "process", base, limit=1)
        await ensure_automations(client)
        # A server elsewhere need not have this package; forms for its blocks are in the UI from now on.
        for kind in (RegionalStore, ModelCatalog):
            await kind.aregister_type_and_schema(client=client)
