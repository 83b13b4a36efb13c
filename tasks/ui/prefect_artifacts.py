"""Artifacts on the Prefect server, which is imported where one is made: without a flow run, neither is there.

What is shown is Markdown, or a picture as a `data:` URI; `key` names an artifact within its run.
"""

from __future__ import annotations

from uuid import UUID


async def create_markdown(markdown: str, key: str, description: str) -> None:
    from prefect.artifacts import acreate_markdown_artifact

    await acreate_markdown_artifact(markdown, key=key, description=description)


async def create_image(image: str, key: str, description: str) -> UUID:
    from prefect.artifacts import acreate_image_artifact

    return await acreate_image_artifact(image, key=key, description=description)


async def update_image(artifact: UUID, image: str, description: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactUpdate

    async with get_client() as client:
        await client.update_artifact(artifact, ArtifactUpdate(data=image, description=description))


async def create_progress(percent: float, key: str, description: str) -> UUID:
    from prefect.artifacts import acreate_progress_artifact

    return await acreate_progress_artifact(percent, key=key, description=description)


async def update_progress(artifact: UUID, percent: float, description: str) -> None:
    from prefect.artifacts import aupdate_progress_artifact

    await aupdate_progress_artifact(artifact, percent, description)
