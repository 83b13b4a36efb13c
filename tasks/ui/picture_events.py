"""Events on the Prefect server that tell what became of a picture; automations act on them, such as on a webhook.

Each has the picture as its resource, `regional.picture.HASH`, named after the job, and in `payload` what programs need.
Outside of a flow run there is no server, and nothing is sent.
"""

from __future__ import annotations

from typing import Any, Literal

from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.machine.task import in_flow_run

logger = plain_logger(__name__)

PICTURE = "regional.picture."
"""How the names of events, and of their resources, begin."""

Outcome = Literal["finished", "failed", "given-up"]
UNKNOWN = "unknown"
"""In the place of a job's hash, where a run failed before it was known."""


def send_picture_event(outcome: Outcome, job_hash: str, name: str, payload: dict[str, Any]) -> None:
    """Send an event from a flow run: in the background, and best effort."""
    if not in_flow_run():
        return
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"{PICTURE}{job_hash}", "prefect.resource.name": name or job_hash[:8]}
    try:
        emit_event(f"{PICTURE}{outcome}", resource, payload={"job_hash": job_hash, "name": name} | payload)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost a picture
        logger.warning("the server could not be told: %s", reason_of(error))
