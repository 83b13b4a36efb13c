"""Background processes of one machine: started once, found again, stopped. A small file says who each one is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

MARK = "REGIONAL_UP"
"""Environment variable that everything started from a folder carries, their children too: that folder."""

_GRACE_SECONDS = 60
"""How long a worker may take to hand its runs back."""


def start(
    folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, port: int
) -> bool:
    """Start a process in the background unless it runs already; its output goes to `folder`/NAME.log.

    `port` is that of the server that it is, or talks to. Returns whether it was started.
    """
    if running(folder, name) is not None:
        return False
    with (folder / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(  # noqa: S603 - commands are spelled in this package
            command,
            cwd=cwd,
            env={**environment, MARK: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    identity = {"pid": child.pid, "created": psutil.Process(child.pid).create_time(), "port": port}
    _file(folder, name).write_text(json.dumps(identity) + "\n")
    return True


def running(folder: Path, name: str) -> psutil.Process | None:
    """The process of that name if it still runs; not one that got its number after a reboot."""
    try:
        identity = _identity(folder, name)
        process = psutil.Process(identity["pid"])
        if process.create_time() == identity["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        pass
    return None


def port_of(folder: Path, name: str) -> int | None:
    """The port that a process was started with; None if it does not run, or nobody wrote that down."""
    return _identity(folder, name).get("port") if running(folder, name) is not None else None


def stop(folder: Path, name: str) -> bool:
    """End a process, first politely; returns whether it ran."""
    process = running(folder, name)
    if process is not None:
        _end([process], _GRACE_SECONDS)
    _file(folder, name).unlink(missing_ok=True)
    return process is not None


def stop_strays(folder: Path) -> int:
    """End what processes of this folder have left behind: runs of a worker that was killed. Returns how many."""
    strays = [process for process in psutil.process_iter() if _carries_mark(process, folder)]
    _end(strays, grace=10)
    return len(strays)


def _carries_mark(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == str(folder)
    except (psutil.Error, OSError):
        return False


def _end(processes: list[psutil.Process], grace: float) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def _identity(folder: Path, name: str) -> dict[str, Any]:
    return json.loads(_file(folder, name).read_text())


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def log_tail(folder: Path, name: str, lines: int = 20) -> str:
    """The last lines that a process has written."""
    with suppress(OSError):
        return "\n".join((folder / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
    return ""
