"""What a machine is set up with if it is asked for: SQLite, and workers that start a process for each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine import Machine
from tests.processes import processes_of

JOB = {"prompt": "a red background", "width": 64, "height": 64, "steps": 3}


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_with_sqlite_and_plain_workers_a_job_is_drawn_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "--sqlite", "--plain")
    commands = set[str]()

    def has_ended(run: str) -> bool:
        commands.update(" ".join(process.cmdline()) for process in processes_of(run))
        return machine.run(run)["state_type"] in ("COMPLETED", "FAILED", "CRASHED")

    try:
        machine.up()
        run = machine.submit("render/render", job=JOB, store=str(machine.store), out=str(machine.out))
        machine.wait_for("its end", lambda: has_ended(run))
        machine.completed(run)
        assert (machine.folder / "prefect" / "prefect.db").exists()
        assert not (machine.folder / "postgres").exists()
    finally:
        machine.up("--down")
    assert any("prefect.engine" in command for command in commands)
    assert not any("handoff" in command for command in commands)
