"""Pools beside that of `make up`, each with a deployment of `render` and workers of its own, on one server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import psutil
from prefect.client.orchestration import PrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.machine import Machine
from tests.processes import stop, waiting_for_runs


def waiting_processes(workers: Iterable[psutil.Process]) -> set[int]:
    """Ids of the workers' processes that have drawn, and have their models in memory for the next run."""
    return {process.pid for worker in workers for process in waiting_for_runs(worker)}


class Pool:
    """A work pool of a machine's server; its workers end with the block.

    Its deployment has the pool's name: `render/<pool>`.
    """

    def __init__(self, machine: Machine, name: str, *options: str) -> None:
        """`options` are those of each of its workers, besides one run at a time."""
        self.name, self.workers = name, list[subprocess.Popen[bytes]]()
        self._machine, self._options, self._started = machine, options, 0

    def __enter__(self) -> Self:
        make = [sys.executable, "-m", "prefect_regional_diffusion.deployments.pools", self.name, "process"]
        # As often as the worker of `make up` asks the server.
        self._env = self._machine.env | self._machine.client | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        subprocess.run(make, cwd=self._machine.folder, env=self._env, check=True, capture_output=True)
        with temporary_settings(
            {PREFECT_API_URL: self._machine.api, PREFECT_API_AUTH_STRING: self._machine.auth_string}
        ):
            asyncio.run(self._deploy())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            stop(worker)

    def start_worker(self) -> None:
        """One more, with a folder of its own for what Prefect keeps."""
        self._started += 1
        folder, name = self._machine.folder, f"{self.name}-{self._started}"
        env = self._env | {"PREFECT_HOME": str(folder / f"prefect-{name}")}
        command = [sys.executable, "-m", "prefect_regional_diffusion.deployments.worker", self.name, "--limit", "1"]
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--name", name, *self._options], cwd=folder, env=env, stdout=log, stderr=log
            )
        self.workers.append(process)

    @property
    def waiting(self) -> set[int]:
        """Ids of processes that have drawn, and have their models in memory for the next run."""
        return waiting_processes(psutil.Process(worker.pid) for worker in self.workers)

    async def _deploy(self) -> None:
        """The deployment `render` once more, in this pool."""
        async with PrefectClient(PREFECT_API_URL.value(), auth_string=PREFECT_API_AUTH_STRING.value()) as client:
            of_gpu = await client.read_deployment_by_name("render/render")
            same = ("path", "entrypoint", "pull_steps", "tags", "parameter_openapi_schema", "enforce_parameter_schema")
            await client.create_deployment(
                of_gpu.flow_id,
                self.name,
                work_pool_name=self.name,
                **{name: getattr(of_gpu, name) for name in same},
            )
