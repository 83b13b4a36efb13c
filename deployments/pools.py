"""Work pools on a Prefect server: `control` for what starts and watches, `gpu` for what draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists

_TEMPLATES = Path(__file__).parent / "pools"
_DESCRIPTIONS = {
    "control": "Starts and watches other runs; needs no GPU",
    "gpu": "Draws; its limit is the number of runs that draw at once",
}


def template(kind: str) -> dict[str, Any]:
    """The base job template of a kind of pool: process, docker or kubernetes."""
    return json.loads((_TEMPLATES / f"{kind}.json").read_text())


async def ensure_pool(client: PrefectClient, name: str, kind: str, limit: int | None) -> None:
    """Create a pool. One that exists gets the current template and keeps its limit, which may have been tuned."""
    try:
        await client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=kind,
                description=_DESCRIPTIONS[name],
                base_job_template=template(kind),
                concurrency_limit=limit,
            )
        )
    except ObjectAlreadyExists:
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template(kind)))
