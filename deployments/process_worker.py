"""Prefect's process worker, as `deployments.worker` starts it: runs are started as their pool says, and not otherwise.

Where the pool names no working directory, a run has the worker's own.

Prefect's server checks `job_variables` where a run of a deployment is asked for, but not where a run is made without
(`POST /flow_runs/`), and its workers take whatever has reached them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


class AsThePoolSays(ProcessJobConfiguration):
    """How a run's process is started."""

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: PrefectClient | None = None
    ) -> AsThePoolSays:
        """As Prefect does. Raises ValueError where a run or its deployment sets what its pool does not list."""
        undeclared = sorted(values.keys() - base_job_template["variables"].get("properties", {}).keys())
        if undeclared:
            raise ValueError(f"job_variables: {', '.join(undeclared)[:200]} cannot be set; the pool has fixed them")
        configuration = await super().from_template_and_values(base_job_template, values, client=client)
        if configuration.working_dir is None:
            # Not a temporary folder, as Prefect's: stores and outputs are named relative to it.
            configuration.working_dir = Path.cwd()
        return configuration


def main() -> None:
    """The command line of Prefect, with this worker in the place of its own."""
    from prefect.cli import app

    ProcessWorker.job_configuration = AsThePoolSays
    app()


if __name__ == "__main__":
    main()
