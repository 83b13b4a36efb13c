"""One fault at a random moment, again and again: `python -m tests.chaos [--runs N] [--seed N] [--json FILE]`.

A real server, real workers (as `make up` starts them), a real S3 endpoint over HTTP. Every run draws the same job
into a store of its own; every picture must be the undisturbed one, without a hand on it, and no step whose state
was in the store may be computed again.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import psutil
from PIL import Image

from deployments import processes
from tests import s3
from tests.fault_proxy import FaultProxy
from tests.machine import Machine

JOB: dict[str, Any] = {
    "prompt": "a blue background",
    "steps": 100,
    "sampler": "dpmpp_2m_sde",
    "regions": [
        {"prompt": "a red striped circle on a yellow background", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
    ],
}
BUCKET = "chaos"


class Outcome(NamedTuple):
    """What became of a run: times in seconds, of the recovery from the fault to the end."""

    fault: str
    during: bool
    """Did the run go on when the fault came?"""
    equal: bool
    stored_at_fault: int
    """Newest step whose state was in the store when the fault came."""
    recomputed: int
    """Steps up to that one that were computed again."""
    starts: int
    recovery: float


class Field:
    """Where the faults happen: machine, S3 server behind a proxy, a small disk for pictures."""

    def __init__(self, machine: Machine, proxy: FaultProxy, endpoint: str, disk: Path | None) -> None:
        self.machine, self.proxy, self.endpoint, self.disk = machine, proxy, endpoint, disk

    def states(self, prefix: str) -> dict[int, str]:
        """Object keys of the states in a store, by step."""
        found = s3.objects(self.endpoint, BUCKET, f"{prefix}/latents/")
        return {int(Path(key).stem): key for key in found}

    def process(self, run_id: str) -> psutil.Process | None:
        """The process of a run."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id:
                    return process
            except (psutil.Error, OSError):
                continue
        return None


def kill_run(field: Field, run_id: str, prefix: str) -> None:
    process = field.process(run_id)
    if process is not None:
        process.kill()


def kill_worker_and_run(field: Field, run_id: str, prefix: str) -> None:
    field.machine.worker().kill()
    kill_run(field, run_id, prefix)


def kill_server(field: Field, run_id: str, prefix: str) -> None:
    server = processes.running(field.machine.folder, "server")
    assert server is not None
    for process in [*server.children(recursive=True), server]:
        process.kill()
    time.sleep(5)
    field.machine.up()


def take_machine_away(field: Field, run_id: str, prefix: str) -> None:
    """SIGTERM, as spot machines get it; half a minute later another machine is there."""
    keeper = processes.running(field.machine.folder, "worker-gpu")
    assert keeper is not None
    keeper.terminate()
    psutil.wait_procs([keeper], timeout=60)
    field.machine.up()


def store_fails(kind: Any, seconds: float) -> Callable[[Field, str, str], None]:
    def fail(field: Field, run_id: str, prefix: str) -> None:
        field.proxy.fail(kind)
        time.sleep(seconds)
        field.proxy.fail("none")

    return fail


def damage_and_kill(field: Field, run_id: str, prefix: str) -> None:
    """The newest state is cut short, as by a writer that died; then the run dies."""
    states = field.states(prefix)
    kill_run(field, run_id, prefix)
    if states:
        key = states[max(states)]
        client = s3.client(field.endpoint)
        whole = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=key, Body=whole[: len(whole) // 2])


def fill_disk(field: Field, run_id: str, prefix: str) -> None:
    """No room for the picture, until somebody makes some."""
    assert field.disk is not None
    # Without a buffer: closing the file would try once more to write what did not fit.
    with (field.disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    states = len(field.states(prefix))
    while len(field.states(prefix)) < JOB["steps"]:
        time.sleep(0.5)
    time.sleep(5 if states else 10)
    (field.disk / "filler").unlink()


FAULTS: dict[str, Callable[[Field, str, str], None]] = {
    "run killed": kill_run,
    "worker and run killed": kill_worker_and_run,
    "server killed": kill_server,
    "SIGTERM": take_machine_away,
    "store away for a minute": store_fails("refused", 60),
    "store answers 503": store_fails("busy", 30),
    "store is silent": store_fails("silent", 30),
    "state truncated": damage_and_kill,
    "disk full": fill_disk,
}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 2 MB; None where mounting one is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def field() -> Iterator[Field]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with s3.s3_server(folder, BUCKET) as port, small_disk(folder / "disk") as disk:
            proxy = FaultProxy(port)
            variables = {
                "REGIONAL_STORE": f"s3://{BUCKET}",
                "REGIONAL_S3_ENDPOINT": proxy.url,
                "REGIONAL_S3_KEY": s3.KEY,
                "REGIONAL_S3_SECRET": s3.SECRET,
                "REGIONAL_OUTS": f"{folder / 'out'},{folder / 'disk'}",
            }
            machine = Machine(folder, **variables)
            try:
                machine.up()
                yield Field(machine, proxy, f"http://127.0.0.1:{port}", disk)
            finally:
                machine.up("--down")


def drawn(field: Field, prefix: str, disturb: Callable[[str], None], out: Path) -> tuple[bytes, dict[str, Any], int]:
    """Pixels, record and number of starts of a run that is disturbed once it runs."""
    machine = field.machine
    parameters = {"job": JOB, "chunk_steps": 1, "store": f"s3://{BUCKET}/{prefix}", "out": str(out), "name": prefix}
    run_id = machine.submit("render/render", **parameters)
    machine.wait_for("the start", lambda: machine.run(run_id)["state_type"] not in ("SCHEDULED", "PENDING"))
    disturb(run_id)
    ended = machine.completed(run_id, seconds=1200)
    (file,) = out.glob(f"{prefix}-*.json")
    record = json.loads(file.read_text())
    with Image.open(io.BytesIO((out / record["images"][0]).read_bytes())) as image:
        pixels = image.convert("RGB").tobytes()
    return pixels, record, ended["run_count"]


def one_run(field: Field, number: int, fault: str, step: int, wanted: bytes) -> Outcome:
    """Draw the job once; when the state after a step is in the store (0: at the start), the fault comes."""
    prefix = f"run-{number}"
    at_fault: list[tuple[bool, float, int]] = []

    def disturb(run_id: str) -> None:
        while max(field.states(prefix), default=0) < step and field.machine.run(run_id)["state_type"] == "RUNNING":
            time.sleep(0.02)
        during = field.machine.run(run_id)["state_type"] == "RUNNING"
        at_fault.append((during, time.monotonic(), max(field.states(prefix), default=0)))
        FAULTS[fault](field, run_id, prefix)

    out = field.disk if fault == "disk full" and field.disk is not None else field.machine.out
    pixels, record, starts = drawn(field, prefix, disturb, out)
    during, began, stored = at_fault[0]
    assert record["steps_restored"] + record["steps_computed"] == JOB["steps"]
    # A state that was cut short is absent, so its step is computed again, and that alone.
    lost = 1 if fault == "state truncated" and stored else 0
    recomputed = max(0, stored - lost - record["steps_restored"]) if starts > 1 else 0
    return Outcome(fault, during, pixels == wanted, stored, recomputed, starts, time.monotonic() - began)


def on_one_machine(
    faults: Sequence[tuple[int, str]], seed: int, told: Callable[[Outcome], None], stopping: Event
) -> None:
    """A machine of its own for these faults, one after the other."""
    with field() as place:
        wanted, _, _ = drawn(place, "undisturbed", lambda _run: None, place.machine.out)
        for number, fault in faults:
            if stopping.is_set():
                return
            if fault == "disk full" and place.disk is None:
                raise RuntimeError("a small disk cannot be mounted here; leave `disk full` out of --faults")
            step = random.Random(f"{seed} {number}").randint(0, JOB["steps"])
            told(one_run(place, number, fault, step, wanted))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--machines", type=int, default=1, help="how many at a time, each with runs of its own")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments")
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there as well")
    given = parser.parse_args(arguments)
    names = given.faults.split(",")
    # Each fault as often as the others, in random order.
    order = [names[i % len(names)] for i in range(given.runs)]
    random.Random(given.seed).shuffle(order)
    outcomes, stopping, telling = list[Outcome](), Event(), Lock()

    def told(outcome: Outcome) -> None:
        with telling:
            outcomes.append(outcome)
            print(
                f"{len(outcomes):3} {outcome.fault:24} {'during' if outcome.during else 'after'} the run, ",
                f"equal {outcome.equal!s:5} {outcome.stored_at_fault:3} states there, ",
                f"recomputed {outcome.recomputed}, starts {outcome.starts}, {outcome.recovery:.0f} s",
                sep="",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps([outcome._asdict() for outcome in outcomes], indent=2) + "\n")

    with ThreadPoolExecutor(given.machines) as pool:
        numbered = list(enumerate(order, start=1))
        machines = [numbered[i :: given.machines] for i in range(given.machines)]
        try:
            for done in [pool.submit(on_one_machine, faults, given.seed, told, stopping) for faults in machines]:
                done.result()
        finally:
            # Told to stop: what was begun is ended, and the machines are shut down.
            stopping.set()
    equal, recomputed = sum(o.equal for o in outcomes), sum(o.recomputed for o in outcomes)
    during = sum(o.during for o in outcomes)
    print(
        f"{equal} of {len(outcomes)} equal, {recomputed} finished steps recomputed; {during} faults came during the run"
    )
    return 0 if equal == given.runs and recomputed == 0 else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
