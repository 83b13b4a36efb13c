"""One fault at a random moment, again and again: `python -m tests.chaos [--runs N] [--seed N] [--json FILE]`.

A real server, real workers (as `make up` starts them), a real S3 endpoint over HTTP. Every run draws one of some jobs
into a store of its own; every picture must be the undisturbed one, without a hand on it, and no step whose state
was in the store may be computed again.

A run counts if it went on when the fault came, and met it: a request was hit, a process died, a write had to wait.
After a fault that ends the process there must have been a state to restore, and a second start. A run that does not
count is repeated with another moment. The exit code is 0 only if all runs count in the end, every picture is equal
(also of runs that do not count), and every second start restored what was stored.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any, NamedTuple

from PIL import Image

from tests.chaos_faults import FAULTS, Target
from tests.chaos_field import Field, can_mount, field, remove
from tests.stepped_clock import can_step

_JOB: dict[str, Any] = {
    "prompt": "a blue background",
    "steps": 60,
    "regions": [
        {"prompt": "a red striped circle on a yellow background", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
    ],
}
JOBS: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde": {**_JOB, "sampler": "dpmpp_2m_sde"},
    "euler_ancestral comfyui x2": {**_JOB, "sampler": "euler_ancestral", "noise": "comfyui", "batch_size": 2},
    "dpmpp_sde comfyui x2": {**_JOB, "sampler": "dpmpp_sde", "noise": "comfyui", "batch_size": 2},
}
_MOST_TRIES = 5
"""Of one run; each at another moment."""


class Outcome(NamedTuple):
    """What became of a run: times in seconds, of the recovery from the fault to the end."""

    fault: str
    job: str
    during: bool
    """Did the run go on when the fault came, and meet it?"""
    equal: bool
    stored_at_fault: int
    """Newest step whose state was in the store when the fault came."""
    restored: int
    """Steps that the last start did not compute, because it found their state."""
    recomputed: int
    """Steps up to the newest stored one that were computed again without need."""
    starts: int
    recovery: float

    @property
    def restarted(self) -> bool:
        """Was there a second start, with a state that it could find?"""
        return self.starts > 1 and self.stored_at_fault > FAULTS[self.fault].lost

    @property
    def counts(self) -> bool:
        """Did the fault come at a moment that proves something?"""
        return self.during and (self.restarted or not FAULTS[self.fault].ends_process)

    @property
    def well(self) -> bool:
        """Is the picture right, and did a second start go on from what was stored?"""
        return self.equal and self.recomputed == 0 and (self.restored > 0 or not self.restarted)

    def told(self) -> str:
        """In one line."""
        when = "during" if self.during else "missed"
        return (
            f"{self.fault:24} {self.job:26} {when}, equal {self.equal!s:5} {self.stored_at_fault:3} states there, "
            f"{self.restored:2} restored, {self.recomputed} recomputed, starts {self.starts}, {self.recovery:.0f} s"
            f"{'' if self.counts else '; does not count, again at another moment'}{'' if self.well else '  WRONG'}"
        )


Pictures = list[bytes]


def drawn(
    field: Field, job: str, name: str, store: str, out: Path, disturb: Callable[[Target], None]
) -> tuple[Pictures, dict[str, Any], int]:
    """Pixels of all pictures, record and number of starts of a run that is disturbed once it runs."""
    machine = field.machine
    parameters = {"job": JOBS[job], "checkpoint_steps": 1, "store": store, "out": str(out), "name": name}
    run_id = machine.submit("render/render", **parameters)
    machine.wait_for("the start", lambda: machine.run(run_id)["state_type"] not in ("SCHEDULED", "PENDING"))
    disturb(Target(run_id, store, JOBS[job]["steps"]))
    ended = machine.completed(run_id, seconds=1200, pause=1)
    (file,) = out.glob(f"{name}-*.json")
    record = json.loads(file.read_text())
    pictures: Pictures = []
    for path in record["images"]:
        with Image.open(io.BytesIO((out / path).read_bytes())) as image:
            pictures.append(image.convert("RGB").tobytes())
    assert len(pictures) == JOBS[job].get("batch_size", 1)
    return pictures, record, ended["run_count"]


def one_run(field: Field, name: str, fault: str, job: str, step: int, reference: Pictures) -> Outcome:
    """Draw a job once; when the state after a step is in the store (0: at the start), the fault comes."""
    about = FAULTS[fault]
    at_fault: list[tuple[bool, float, int]] = []

    def disturb(target: Target) -> None:
        last_query = time.monotonic()
        while field.newest(target.store) < step:
            time.sleep(0.02)
            # Seldom: what is asked of the server costs the run time that it needs itself.
            if time.monotonic() - last_query > 2:
                if not field.goes_on(target.run_id):
                    break
                last_query = time.monotonic()
        is_running, fault_time, newest_state = (
            field.goes_on(target.run_id),
            time.monotonic(),
            field.newest(target.store),
        )
        is_met = is_running and newest_state >= about.earliest and about.strike(field, target)
        at_fault.append((is_met, fault_time, newest_state))

    store = field.store(name, on_disk=about.store_on_disk)
    out = field.disks["pictures"] if about.pictures_on_disk else field.machine.out
    pictures, record, starts = drawn(field, job, name, store, out, disturb)
    remove(field, store)
    is_met, fault_time, newest_state = at_fault[0]
    restored = record["steps_restored"]
    assert restored + record["steps_computed"] == JOBS[job]["steps"]
    recomputed = max(0, newest_state - about.lost - restored) if starts > 1 else 0
    return Outcome(
        fault,
        job,
        is_met,
        pictures == reference,
        newest_state,
        restored,
        recomputed,
        starts,
        time.monotonic() - fault_time,
    )


class Order(NamedTuple):
    """One run to be made; `number` and the seed decide its moment."""

    number: int
    fault: str
    job: str


def orders(runs: int, faults: Sequence[str], seed: int) -> list[Order]:
    """Each fault as often as the others, with the jobs in turn, in random order."""
    jobs = list(JOBS)
    rounds = [divmod(i, len(faults)) for i in range(runs)]
    pairs = [(faults[index], jobs[(round_ + index) % len(jobs)]) for round_, index in rounds]
    random.Random(seed).shuffle(pairs)
    return [Order(number, fault, job) for number, (fault, job) in enumerate(pairs, start=1)]


def on_one_machine(
    waiting: SimpleQueue[Order], faults: Sequence[str], seed: int, report: Callable[[Outcome], None], stopping: Event
) -> None:
    """A machine of its own, for one run after the other until none waits."""
    references: dict[str, Pictures] = {}
    with field(with_disks=any(_needs_disk(fault) for fault in faults), with_clock=_CLOCK in faults) as place:
        while not stopping.is_set():
            try:
                number, fault, job = waiting.get_nowait()
            except Empty:
                return
            if job not in references:
                name = f"undisturbed-{len(references)}"
                store = place.store(name, on_disk=False)
                references[job], _, _ = drawn(place, job, name, store, place.machine.out, lambda _target: None)
            for attempt in range(_MOST_TRIES):
                # Before the last step, so that the run goes on.
                latest = JOBS[job]["steps"] - 1
                step = random.Random(f"{seed} {number} {attempt}").randint(FAULTS[fault].earliest, latest)
                try:
                    outcome = one_run(place, f"run-{number}-{attempt}", fault, job, step, references[job])
                except AssertionError as error:
                    # The others may still say something: whether all fails, or this alone.
                    print(error, flush=True)
                    outcome = Outcome(fault, job, True, False, step, 0, 0, 0, 0.0)
                    place.proxy.fail("none")
                if fault == _CLOCK:
                    # The run needed nobody, but the next ones need a reaper that is planned at the right time.
                    place.restart()
                report(outcome)
                if outcome.counts or not outcome.well or stopping.is_set():
                    break


_CLOCK = "clock steps"


def _needs_disk(fault: str) -> bool:
    return FAULTS[fault].store_on_disk or FAULTS[fault].pictures_on_disk


def possible(faults: Sequence[str]) -> list[str]:
    """Those of the faults that this machine allows; of others it is said why they are left out."""
    allowed: list[str] = []
    for fault in faults:
        if _needs_disk(fault) and not can_mount():
            print(f"left out: {fault} (a small disk cannot be mounted here)", flush=True)
        elif fault == _CLOCK and not can_step():
            print(f"left out: {fault} (there is no C compiler here)", flush=True)
        else:
            allowed.append(fault)
    return allowed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--machines", type=int, default=1, help="how many at a time, each with runs of its own")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments")
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there as well")
    options = parser.parse_args(arguments)
    fault_names = options.faults.split(",")
    if not FAULTS.keys() >= set(fault_names):
        parser.error(f"--faults: there are {', '.join(FAULTS)}")
    faults = possible(fault_names)
    if not faults:
        return 1
    outcomes, stopping, telling = list[Outcome](), Event(), Lock()
    start_time = time.monotonic()

    def report(outcome: Outcome) -> None:
        with telling:
            outcomes.append(outcome)
            print(f"{sum(o.counts for o in outcomes):3} {outcome.told()}", flush=True)
            if options.json:
                rows = [outcome._asdict() | {"counts": outcome.counts} for outcome in outcomes]
                options.json.write_text(json.dumps(rows, indent=2) + "\n")

    waiting = SimpleQueue[Order]()
    for order in orders(options.runs, faults, options.seed):
        waiting.put(order)
    with ThreadPoolExecutor(options.machines) as pool:
        try:
            machines = [
                pool.submit(on_one_machine, waiting, faults, options.seed, report, stopping)
                for _ in range(options.machines)
            ]
            for machine in machines:
                machine.result()
        finally:
            # Told to stop: what was begun is ended, and the machines are shut down.
            stopping.set()
    return _summed_up(outcomes, options.runs, time.monotonic() - start_time)


def _summed_up(outcomes: Sequence[Outcome], runs: int, seconds: float) -> int:
    """Print the totals; returns the exit code."""
    counting = [outcome for outcome in outcomes if outcome.counts]
    restarted = [outcome for outcome in counting if outcome.restarted]
    restored = sum(outcome.restored > 0 for outcome in restarted)
    wrong = sum(not outcome.well for outcome in outcomes)
    print(
        f"{sum(o.equal for o in counting)} of {runs} equal, {sum(o.recomputed for o in counting)} finished steps "
        f"recomputed; {len(counting)} faults came during the run, and {restored} of {len(restarted)} new starts "
        f"restored what was stored; {len(outcomes) - len(counting)} runs did not count and were repeated; "
        f"{wrong} of all went wrong; {seconds / 60:.0f} min"
    )
    return 0 if len(counting) == runs and wrong == 0 else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
