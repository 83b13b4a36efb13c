"""A worker with a resident process for the flow `render`, in a pool of its own on any server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prefect_regional_diffusion.deployments.pools import fixed_template
from tests.processes import post, stop


def deployed(server: str, pool: str) -> str:
    """A deployment of `render` in a new pool, both of the same name; returns its id."""
    # Slow to import, and only here.
    from prefect.utilities.callables import parameter_schema

    from prefect_regional_diffusion.flows.render import render

    post(server, "work_pools/", {"name": pool, "type": "process", "base_job_template": fixed_template("process")})
    flow = post(server, "flows/", {"name": "render"})["id"]
    deployment = {
        "name": pool,
        "flow_id": flow,
        "entrypoint": "prefect_regional_diffusion.flows.render.render",
        "work_pool_name": pool,
        "tags": ["regional"],
        "parameter_openapi_schema": parameter_schema(render).model_dump(mode="json"),
        "enforce_parameter_schema": True,
    }
    return post(server, "deployments/", deployment)["id"]


@contextmanager
def worker(pool: str, folder: Path, env: dict[str, str], *options: object) -> Generator[Path]:
    """A worker of a pool, of the same name, that draws one run at a time in a folder; yields its log."""
    command = [sys.executable, "-m", "prefect_regional_diffusion.deployments.worker", pool, "--limit", "1"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--name", pool, *map(str, options)], cwd=folder, env=env | quick, stdout=log, stderr=log
        )
    try:
        yield folder / "worker.log"
    finally:
        stop(process)
