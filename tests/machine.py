"""One machine as `make up` sets it up, for tests: server, pools, workers, deployments, on a port of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments.local_stack import PARTS
from prefect_regional_diffusion.deployments.postgres import Cluster
from tests.processes import ROOT, ask, auth_files, environment, free_port, living, post

ASKED_HERE = "asked-by=tests"
"""In the addresses of the tests' own questions, so that a server's log tells them from others'."""

ENDS = ("COMPLETED", "FAILED", "CANCELLED")


KEYS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "REGIONAL_S3_SECRET": "s3-secret",
    "REGIONAL_S3_KEY": "s3-key",
    "HF_TOKEN": "hf-secret",
    "MY_PASSWORD": "other-secret",
    "PREFECT_API_KEY": "cloud-secret",
}
"""Secrets that the user of the shared machine has in the environment."""


class Machine:
    """`make up` with a folder and a port of its own."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        """`options` are those of each `up`."""
        self.options = options
        self.folder, self.port = folder / "up", free_port()
        self.store, self.out = folder / "store", folder / "out"
        self.ui = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.ui}/api"
        auth_files[self.api] = self.folder / "auth"
        allowed = {"REGIONAL_ALLOWED_STORES": str(self.store), "REGIONAL_ALLOWED_OUTPUTS": str(self.out)}
        self.env = environment(folder / "home") | {"REGIONAL_KEEP": "all"} | allowed | variables

    def up(self, *options: str) -> str:
        """What `python -m prefect_regional_diffusion.deployments.up` says."""
        command = [
            sys.executable,
            "-m",
            "prefect_regional_diffusion.deployments.up",
            "--port",
            str(self.port),
            "--folder",
            str(self.folder),
        ]
        process = subprocess.run(
            [*command, *self.options, *options],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert process.returncode == 0, process.stdout + process.stderr + self.logs()
        return process.stdout

    def ensure_up(self) -> None:
        """Start what a test has stopped."""
        if not all(processes.running(self.folder, part) for part in PARTS):
            self.up()

    @property
    def has_postgres(self) -> bool:
        """Whether its database is a PostgreSQL of its own."""
        return Cluster(self.folder / "postgres").exists

    @property
    def auth_string(self) -> str:
        """What the server asks everybody for."""
        return (self.folder / "auth").read_text().strip()

    @property
    def client(self) -> dict[str, str]:
        """The environment of a program that talks to the server."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.auth_string}

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    def submit(self, deployment: str, **parameters: Any) -> str:
        """Start a run; returns its id."""
        flow, name = deployment.split("/")
        deployments = post(self.api, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        assert len(deployments) == 1, f"{flow} has {len(deployments)} deployments of that name"
        order = {"parameters": parameters, "idempotency_key": uuid4().hex}
        return post(self.api, f"deployments/{deployments[0]['id']}/create_flow_run", order)["id"]

    def delete(self, path: str) -> None:
        ask(f"{self.api}/{path}", method="DELETE")

    def patch(self, path: str, body: dict[str, Any]) -> None:
        ask(f"{self.api}/{path}", body, "PATCH")

    def run(self, run_id: str) -> dict[str, Any]:
        """A run as the server knows it. Raises OSError while it does not answer."""
        (flow_run,) = post(self.api, f"flow_runs/filter?{ASKED_HERE}", {"flow_runs": {"id": {"any_": [run_id]}}})
        return flow_run

    def wait_for(
        self, event: str, check: Callable[[], object], seconds: float = 240, pause: float | None = None
    ) -> None:
        """Check after each pause; without one given, the pauses grow: servers and tests share the processor."""
        began = time.monotonic()

        def holds() -> bool:
            try:
                return bool(check())
            except OSError:  # the server is away
                return False

        while not holds():
            waited = time.monotonic() - began
            assert waited < seconds, f"waited in vain: {event}\n{self.logs()}"
            time.sleep(min(max(0.25, waited / 10), 2.0) if pause is None else pause)

    def completed(self, run_id: str, seconds: float = 240, pause: float | None = None) -> dict[str, Any]:
        """The run when it has ended well; the server is asked as by `wait_for`."""
        self.wait_for("the end of a run", lambda: self.run(run_id)["state_type"] in ENDS, seconds, pause)
        run = self.run(run_id)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        return run

    def deployment(self, name: str) -> dict[str, Any]:
        (deployment,) = post(self.api, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return deployment

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        """Runs of a deployment, the oldest one first."""
        query = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return post(self.api, "flow_runs/filter", query)

    def worker(self) -> psutil.Process:
        """Prefect's worker of the pool `gpu`; its children are runs, or hand them to a resident process."""
        keeper = processes.running(self.folder, "worker-gpu")
        assert keeper is not None, self.logs()
        (worker,) = living(lambda child: "process_worker" in " ".join(child.cmdline()), keeper.children())
        return worker

    def reap(self, **patience: float) -> None:
        """Start the reaper at once, with less patience than every minute's has."""
        ended: dict[str, Any] = {"state_type": "CANCELLED"}
        while ended["state_type"] == "CANCELLED":  # there is one at a time: the scheduled one was at work
            run = self.submit("reap/reap", **patience)
            self.wait_for("the reaper", lambda run=run: self.run(run)["state_type"] in ENDS)
            ended = self.run(run)
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
