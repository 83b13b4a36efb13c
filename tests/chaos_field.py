"""Where the faults of `tests.chaos` happen: a machine, an S3 server behind a proxy, two small disks, a clock."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from prefect_regional_diffusion.deployments import background_processes as processes
from tests import s3
from tests.fault_proxy import FaultProxy
from tests.machine import Machine
from tests.processes import post, processes_of, with_variable
from tests.stepped_clock import SteppedClock

BUCKET = "chaos"

_REAPER = {"running_seconds": 45, "crashed_seconds": 30, "second_look_seconds": 31}
"""The least that the reaper takes: a run is a minute old here, and nobody wants to wait two for it."""
_REAPER_SECONDS = 30
_PLANNED_AHEAD = "PT3M"
"""So far ahead the server plans runs of the reaper. Prefect plans a hundred, which are all due at once when the clock
steps ahead by an hour; SQLite is then locked for minutes, and with it the server."""


class Field:
    """A machine with what a fault needs; None is what cannot be had here."""

    def __init__(
        self, machine: Machine, proxy: FaultProxy, endpoint: str, disks: dict[str, Path], clock: SteppedClock | None
    ) -> None:
        self.machine, self.proxy, self.disks, self.clock = machine, proxy, disks, clock
        self.s3 = s3.client(endpoint)
        """Straight to the server; one for all questions, because to make a client takes longer than to ask."""

    def up(self) -> None:
        """Start what does not run; deploying sets the reaper back to its defaults, so it is hurried again."""
        self.machine.up()
        (reaper,) = post(self.machine.api, "deployments/filter", {"deployments": {"name": {"any_": ["reap"]}}})
        self.machine.patch(f"deployments/{reaper['id']}", {"parameters": _REAPER})
        for schedule in reaper["schedules"]:
            every = {"schedule": {"interval": _REAPER_SECONDS}}
            self.machine.patch(f"deployments/{reaper['id']}/schedules/{schedule['id']}", every)

    def restart(self) -> None:
        """Stop everything and start it anew: loops of Prefect's server sleep for as long as a clock was set back."""
        self.machine.up("--down")
        self.up()

    def store(self, name: str, *, on_disk: bool) -> str:
        """URL of a store for one run: on S3, or on a small disk of its own."""
        return str(self.disks["store"] / name) if on_disk else f"s3://{BUCKET}/{name}"

    def states(self, store: str) -> dict[int, str]:
        """Object keys or files of the states in a store, by step."""
        if store.startswith("s3:"):
            prefix = f"{store.removeprefix(f's3://{BUCKET}/')}/latents/"
            # One page: a thousand states.
            objects = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
            return {int(Path(item["Key"]).stem): item["Key"] for item in objects}
        return {int(file.stem): str(file) for file in Path(store).glob("latents/*/[0-9]*.safetensors")}

    def newest(self, store: str) -> int:
        """The last step whose state is in a store; 0 if there is none."""
        return max(self.states(store), default=0)

    def goes_on(self, run_id: str) -> bool:
        """Whether the server takes a run for running."""
        return self.machine.run(run_id)["state_type"] == "RUNNING"

    def process(self, run_id: str) -> psutil.Process | None:
        """The process that executes a run."""
        return next(iter(processes_of(run_id)), None)


@contextmanager
def small_disk(folder: Path, size: str) -> Generator[Path | None]:
    """A file system of that size; None where mounting one is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount() -> bool:
    """Whether small disks can be had here."""
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk", "64k") as disk:
        return disk is not None


@contextmanager
def field(*, with_disks: bool, with_clock: bool) -> Generator[Field]:
    """Set it up; at the end everything must be stopped, also after the clock was set."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        port = stack.enter_context(s3.s3_server(folder, BUCKET))
        disks: dict[str, Path] = {}
        for name, size in {"pictures": "2m", "store": "32m"}.items() if with_disks else ():
            disk = stack.enter_context(small_disk(folder / name, size))
            assert disk is not None
            disks[name] = disk
        clock = SteppedClock(folder) if with_clock else None
        proxy = FaultProxy(port)
        variables = {
            "REGIONAL_STORE": f"s3://{BUCKET}",
            "REGIONAL_ALLOWED_STORES": str(folder / "store"),
            "REGIONAL_S3_ENDPOINT": proxy.url,
            "REGIONAL_S3_KEY": s3.KEY,
            "REGIONAL_S3_SECRET": s3.SECRET,
            "REGIONAL_ALLOWED_OUTPUTS": f"{folder / 'out'},{folder / 'pictures'}",
            "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": _PLANNED_AHEAD,
            **({} if clock is None else clock.variables),
        }
        machine = Machine(folder, **variables)
        place = Field(machine, proxy, f"http://127.0.0.1:{port}", disks, clock)
        try:
            place.up()
            yield place
        finally:
            if clock is not None:
                clock.step(3600)
            machine.up("--down")
            leftovers = with_variable(processes.OWNER_TAG, str(machine.folder))
            assert not leftovers, f"`make down` has left {leftovers}"


def remove(place: Field, store: str) -> None:
    """Remove a store on a small disk, so that the next one has room."""
    if not store.startswith("s3:"):
        shutil.rmtree(store, ignore_errors=True)
