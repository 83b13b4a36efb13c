"""What a process that draws one run after the other keeps of them: `python -m benchmarks.memory [--runs N]`.

Small jobs of one model, each with a seed of its own, are drawn in turn by one process of a resident worker, which by
default ends after a hundred: its resident memory after the first, the 20th and the last of them. One reading differs
from the next by some 10 MB, so the last two are medians of five readings each, after the run named and those before it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.pools import Pool
from tests.machine import Machine

JOB: dict[str, Any] = {"prompt": "a blue background", "steps": 4, "width": 128, "height": 128}
EARLY, READINGS = 20, 5
MOST_GROWTH = 1.05
"""Of the memory after the last run to that after the 20th."""


def waiting_process(machine: Machine, pool: Pool) -> psutil.Process:
    """The process that has drawn, and waits for the next run."""
    machine.wait_for("a process that waits", lambda: len(pool.waiting) == 1)
    return psutil.Process(*pool.waiting)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--runs", type=int, default=200, help="one after the other, more than 20 [200]")
    options = parser.parse_args(arguments)
    if options.runs <= EARLY:
        parser.error(f"--runs: more than {EARLY}")
    readings = list[float]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # A store of its own: what an earlier measurement has drawn would be found, and not drawn.
        machine = Machine(folder, REGIONAL_STORE=str(folder / "store"))
        stack.callback(machine.up, "--down")
        machine.up()
        pool = stack.enter_context(Pool(machine, "gpu-kept", "--keep", str(options.runs + 1)))
        pool.start_worker()
        drawing = None
        for number in range(1, options.runs + 1):
            run = machine.submit(f"render/{pool.name}", job=JOB | {"seed": number}, out=str(machine.out))
            machine.completed(run, pause=0.5)
            process = waiting_process(machine, pool)
            assert drawing in (None, process), f"run {number} was drawn by another process"
            drawing = process
            readings.append(process.memory_info().rss / 1e6)
    early, late = (round(median(readings[number - READINGS : number]), 1) for number in (EARLY, options.runs))
    megabytes = {1: round(readings[0], 1), EARLY: early, options.runs: late}
    growth = late / early
    figures = {"megabytes_after_runs": megabytes, "growth": round(growth, 4)}
    print(json.dumps(figures, indent=2))
    if options.json:
        every = {"readings": [round(reading, 1) for reading in readings]}
        options.json.write_text(json.dumps(figures | every, indent=2) + "\n")
    return 0 if growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
