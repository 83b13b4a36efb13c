"""A worker that hands its runs back when its machine is taken away.

`python -m prefect_regional_diffusion.deployments.worker gpu --limit 1`

Prefect's process worker kills its runs on SIGTERM, and the server gets no further state from them. This one stops them
in order and puts them back into the queue at once. A worker that dies for other reasons is started again.
Runs that ask for a command or an environment of their own are refused (`process_worker`).
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING
from uuid import UUID

import psutil

from prefect_regional_diffusion.deployments.metrics.endpoint import Endpoint
from prefect_regional_diffusion.deployments.requeueing import put_back
from prefect_regional_diffusion.deployments.resident.keeping import Resident, is_possible
from prefect_regional_diffusion.flows.common.environment import set_defaults
from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.machine.metrics import SOCKET

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_RUN_ID = "PREFECT__FLOW_RUN_ID"
"""Environment variable in which Prefect gives a process the id of its flow run."""

GRACE_SECONDS = 25
"""For a run to notice; clouds give a machine 30 s and more."""

_KEEP = 100
"""Runs that one process draws with its models in memory: more, and what libraries leak would add up."""

_LOAD_SECONDS = 20.0
"""Of Stable Diffusion XL or FLUX.1 from a local disk, roughly."""


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m prefect_regional_diffusion.deployments.worker", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("pool", help="name of a work pool of type process")
    options.add_argument("--limit", type=int, help="runs at once [no limit]")
    options.add_argument("--name", help="of the worker in the UI [by Prefect]")
    options.add_argument(
        "--with-healthcheck",
        action="store_true",
        help="answer GET /health at PREFECT_WORKER_WEBSERVER_HOST and _PORT, as Prefect's workers do",
    )
    options.add_argument("--plain", action="store_true", help="a new interpreter for each run, as Prefect starts them")
    options.add_argument(
        "--keep",
        type=int,
        default=_KEEP,
        metavar="RUNS",
        help=f"a process that draws takes so many runs, its models in memory [{_KEEP}]; 1: a new one for each",
    )
    options.add_argument(
        "--load-seconds",
        type=float,
        default=_LOAD_SECONDS,
        metavar="SECONDS",
        help="about how long a model takes to load: so much it is worth to take runs of a model that is in memory "
        f"first, and to leave others to other workers; 0: nothing [{_LOAD_SECONDS:.0f}]",
    )
    options.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="serve metrics of the runs to Prometheus there [no metrics]"
    )
    options.add_argument(
        "--metrics-address",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="at which they are served, to everybody who reaches it [127.0.0.1]",
    )
    return options


def main() -> None:
    arguments = parser().parse_args()
    # Runs of a worker are watched in the UI: there, logs are wanted.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    set_defaults()
    if arguments.limit == 1 and is_possible():
        # Who has one slot has a GPU to itself, unless told otherwise.
        os.environ.setdefault("REGIONAL_DEVICE_LOCK", "auto")
    # Before anything is started: their environment says where runs tell what they measure.
    if arguments.metrics_port is not None:
        _serve_metrics(arguments.pool, arguments.metrics_address, arguments.metrics_port)
    resident = None if arguments.plain else _resident(arguments.keep)
    command = [sys.executable, "-m", "prefect_regional_diffusion.deployments.process_worker", arguments.pool]
    command += ["--resident", resident.path] if resident else []
    # Who has one slot has one GPU, and keeps the models of the last run on it.
    if resident and arguments.keep > 1 and arguments.limit == 1:
        command += ["--load-seconds", str(arguments.load_seconds)]
    command += ["--limit", str(arguments.limit)] if arguments.limit else []
    command += ["--name", arguments.name] if arguments.name else []
    command += ["--with-healthcheck"] if arguments.with_healthcheck else []
    keep_running(command, resident)


def _resident(most_runs: int) -> Resident | None:
    if not is_possible():
        return None
    try:
        return Resident(max(1, most_runs))
    except OSError as error:
        print(f"There is no resident process ({plain(error)}); each run starts an interpreter.", flush=True)
        return None


def _serve_metrics(pool: str, address: str, port: int) -> None:
    """Serve metrics until this process ends; ends it with a sentence where that is not possible."""
    try:
        endpoint = Endpoint(pool, address, port)
    except (OSError, OverflowError) as error:
        sys.exit(f"Metrics cannot be served at {plain(address)}, port {port}: {plain(error)}")
    atexit.register(endpoint.close)
    os.environ[SOCKET] = endpoint.collector.path
    print(f"Metrics: {endpoint.url}", flush=True)


def keep_running(command: list[str], resident: Resident | None = None) -> None:
    """Run a worker, and its resident process, until this process is told to stop (SIGTERM or SIGINT)."""
    stop_requested = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop_requested.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    while not stop_requested.is_set():
        if resident is not None:
            resident.ensure_running()
        # A session of its own: a Ctrl-C in a terminal is for this process, which then stops the worker in order.
        worker = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - the command is spelled above
        while worker.poll() is None and not stop_requested.wait(0.5):
            if resident is not None:
                resident.ensure_running()
        if worker.poll() is None:
            requeue_runs(worker)
        elif not stop_requested.wait(2):
            print(f"The worker ended with code {worker.returncode}; it is started again.", flush=True)
    if resident is not None:
        resident.close()


def requeue_runs(worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker and its runs, and put these back into the queue."""
    process = psutil.Process(worker.pid)
    # Frozen, it neither fetches the runs anew nor reports their end as a crash.
    process.suspend()
    runs = _runs_of(process)
    signal_time = datetime.now(UTC)
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    _wait_for_end(list(runs))
    for flow_run_id in runs.values():
        put_back(UUID(flow_run_id), partial(_was_ended, signal_time))
    process.resume()
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _was_ended(signal_time: datetime, state: State) -> bool:
    """Whether the signal has ended a run in this state, and not the run itself."""
    # A signal that arrives while a task is being set up is taken for an error of that task by Prefect.
    failed_by_signal = state.is_failed() and state.timestamp >= signal_time
    return failed_by_signal or state.is_crashed() or state.is_running() or state.is_pending()


def _runs_of(worker: psutil.Process) -> dict[psutil.Process, str]:
    runs: dict[psutil.Process, str] = {}
    for child in worker.children():
        with suppress(psutil.Error):
            flow_run_id = child.environ().get(_RUN_ID)
            if flow_run_id:
                runs[child] = flow_run_id
    return runs


def _wait_for_end(runs: list[psutil.Process]) -> None:
    """Until all are dead; their parent is frozen, so they stay as zombies."""
    timer = threading.Event()
    for _ in range(GRACE_SECONDS * 10):
        if not any(_alive(run) for run in runs):
            return
        timer.wait(0.1)
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
