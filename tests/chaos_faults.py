"""The faults of `tests.chaos`, and what counts as having met each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments import resident
from tests.chaos_field import BUCKET, Field
from tests.fault_proxy import Fault as Failure
from tests.processes import processes_of


class Target(NamedTuple):
    """A run that a fault is for."""

    run_id: str
    store: str
    """URL of the run's own store."""
    steps: int


class Fault(NamedTuple):
    """A fault that comes when a run has stored the state of some step."""

    strike: Callable[[Field, Target], bool]
    """Does it, and returns once it is over: whether the run met it."""
    ends_process: bool = True
    """Does the run need a new start? It must then restore what was stored. Others only delay."""
    earliest: int = 1
    """The first step after which it may come; 0 is the start of the run."""
    lost: int = 0
    """So many of the newest states count as absent at the new start, and are computed again rightly."""
    store_on_disk: bool = False
    pictures_on_disk: bool = False


def _kill_run(field: Field, target: Target) -> bool:
    process = field.process(target.run_id)
    if process is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process.kill()
    return True


def _kill_as_memory_runs_out(field: Field, target: Target) -> bool:
    """SIGKILL when the process is next given many pages: what the kernel does where there are none left. A step takes
    those of the last one again; so it may come a few steps later.

    Who sends the signal is the difference: a limit of the kernel's own (a cgroup) is not for a test to set everywhere.
    """
    process = field.process(target.run_id)
    if process is None:
        return False
    status = Path(f"/proc/{process.pid}/stat")

    def faults() -> int:
        # After the name, in parentheses, the eighth field counts pages that were given to it.
        return int(status.read_text().rpartition(")")[2].split()[7])

    with suppress(psutil.NoSuchProcess, OSError):
        before, deadline = faults(), time.monotonic() + 20
        while faults() - before < _PAGES and time.monotonic() < deadline:
            time.sleep(0.001)
        if faults() - before >= _PAGES:
            process.kill()
            return True
    return False


_PAGES = 64
"""A quarter of a megabyte."""


def _kill_worker_and_run(field: Field, target: Target) -> bool:
    with suppress(psutil.NoSuchProcess):
        field.machine.worker().kill()
    return _kill_run(field, target)


def _take_machine_away(field: Field, target: Target) -> bool:
    """SIGTERM, as spot machines get it; some seconds later another machine is there."""
    keeper = processes.running(field.machine.folder, "worker-gpu")
    assert keeper is not None
    keeper.terminate()
    psutil.wait_procs([keeper], timeout=60)
    field.up()
    return True


def _kill_hand_off(field: Field, target: Target) -> bool:
    """What the worker started for the run: the process that executes it goes, too."""
    *_, started = processes_of(target.run_id) or [None]
    if started is None:
        return False
    with suppress(psutil.NoSuchProcess):
        started.kill()
    return True


def _kill_resident(field: Field, target: Target) -> bool:
    """The process of which the run was forked; the run goes on, and the next one is forked of another."""
    keeper = processes.running(field.machine.folder, "worker-gpu")
    assert keeper is not None
    for child in keeper.children():
        with suppress(psutil.Error):
            if any(argument.endswith("resident.parent") for argument in child.cmdline()):
                child.kill()
    return field.goes_on(target.run_id)


def _change_code(field: Field, target: Target) -> bool:
    """A module is written anew while the run goes on, as by an update."""
    os.utime(Path(resident.__file__))
    return field.goes_on(target.run_id)


def _take_server_away(field: Field, target: Target) -> bool:
    is_running = field.process(target.run_id) is not None
    server = processes.running(field.machine.folder, "server")
    assert server is not None
    for process in [*server.children(recursive=True), server]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    time.sleep(60)
    field.up()
    return is_running


def _store_fails(*failures: Failure, seconds: float) -> Callable[[Field, Target], bool]:
    """In these ways one after the other, in so many seconds altogether. Met by a request."""

    def fail(field: Field, target: Target) -> bool:
        met = 0
        for failure in failures:
            field.proxy.fail(failure)
            time.sleep(seconds / len(failures))
            met += field.proxy.met
        field.proxy.fail("none")
        return met > 0

    return fail


def _damage_and_kill(field: Field, target: Target) -> bool:
    """The newest state is cut short, as by a writer that died; then the run dies."""
    states = field.states(target.store)
    met = _kill_run(field, target)
    key = states[max(states)]
    content = field.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    field.s3.put_object(Bucket=BUCKET, Key=key, Body=content[: len(content) // 2])
    return met


def _kill_and_halve(failure: Failure, most: int | None) -> Callable[[Field, Target], bool]:
    """The run dies, and what its new start reads arrives by half: for ten seconds, or `most` times."""

    def fail(field: Field, target: Target) -> bool:
        if not _kill_run(field, target):
            return False
        field.proxy.fail(failure, most)
        field.machine.wait_for(
            "the new start to read",
            lambda: field.proxy.met or field.machine.run(target.run_id)["state_type"] == "COMPLETED",
            seconds=600,
        )
        time.sleep(10)
        field.proxy.fail("none")
        return field.proxy.met > 0

    return fail


def _fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    # Without a buffer: closing the file would try once more to write what did not fit.
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    return filler


def _fill_store(field: Field, target: Target) -> bool:
    """No room for states. Met if that kept the run from finishing its steps."""
    filler = _fill(field.disks["store"])
    time.sleep(20)
    met = field.goes_on(target.run_id) and field.newest(target.store) < target.steps
    filler.unlink()
    return met


def _fill_disk(field: Field, target: Target) -> bool:
    """No room for the pictures, until somebody makes some. Met if all steps are done and the run is not."""
    filler = _fill(field.disks["pictures"])
    while field.newest(target.store) < target.steps and field.goes_on(target.run_id):
        time.sleep(0.5)
    time.sleep(10)
    met = field.goes_on(target.run_id)
    filler.unlink()
    return met


def _step_clock(field: Field, target: Target) -> bool:
    """The clock of server, workers and runs is an hour ahead, then right again; S3's never moves.

    Met by a request: S3 refuses one whose date is an hour off.
    """
    assert field.clock is not None
    field.proxy.fail("dated")
    field.clock.step(3600)
    time.sleep(20)
    field.clock.step(0)
    field.proxy.fail("none")
    return field.proxy.met > 0


FAULTS: dict[str, Fault] = {
    "run killed": Fault(_kill_run),
    "out of memory": Fault(_kill_as_memory_runs_out),
    "worker and run killed": Fault(_kill_worker_and_run),
    "SIGTERM": Fault(_take_machine_away),
    "hand-off killed": Fault(_kill_hand_off),
    "resident process killed": Fault(_kill_resident, ends_process=False),
    "code changes": Fault(_change_code, ends_process=False),
    "state truncated": Fault(_damage_and_kill, earliest=2, lost=1),
    "reads break off": Fault(_kill_and_halve("cut", None)),
    "reads arrive by half": Fault(_kill_and_halve("short", 2), earliest=3, lost=2),
    "server away for a minute": Fault(_take_server_away, ends_process=False, earliest=0),
    "store away for a minute": Fault(_store_fails("refused", seconds=60), ends_process=False, earliest=0),
    "store answers 503": Fault(_store_fails("SlowDown", seconds=30), ends_process=False, earliest=0),
    # Only who had success before knows that its keys are right.
    "store answers 403": Fault(
        _store_fails("RequestTimeTooSkewed", "ExpiredToken", "AccessDenied", seconds=21), ends_process=False
    ),
    "store is silent": Fault(_store_fails("silent", seconds=30), ends_process=False, earliest=0),
    "store full": Fault(_fill_store, ends_process=False, earliest=0, store_on_disk=True),
    "disk full": Fault(_fill_disk, ends_process=False, earliest=0, pictures_on_disk=True),
    "clock steps": Fault(_step_clock, ends_process=False),
}
