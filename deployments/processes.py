"""Background processes of one machine: started once, found again, stopped. A small file says who each one is.

A process is known by its number, by the boot of the machine and by the ticks from there to its start: the system's
clock may be set meanwhile, and neither of them moves.
"""

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

PART = "REGIONAL_UP_PART"
"""Environment variable with the name of what was started, of the same processes."""

_PROC = Path("/proc")

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
            env={**environment, MARK: str(folder), PART: name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    identity = {"pid": child.pid, **birth(child.pid), "port": port}
    _file(folder, name).write_text(json.dumps(identity) + "\n")
    return True


def running(folder: Path, name: str) -> psutil.Process | None:
    """The process of that name if it still runs; not one that got its number after a reboot."""
    try:
        identity = _identity(folder, name)
        process = psutil.Process(identity["pid"])
        born = birth(process.pid)
        if born.items() <= identity.items() and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        pass
    return None


def birth(pid: int) -> dict[str, Any]:
    """What no other process of that number has, on this machine or after a reboot. Raises OSError or psutil.Error.

    Where there is no /proc, it is the time of its start, as the clock then was: no better is to be had there.
    """
    if not (_PROC / "self" / "stat").exists():
        return {"created": psutil.Process(pid).create_time()}
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except FileNotFoundError as error:
        raise psutil.NoSuchProcess(pid) from error
    # Its name, in parentheses, may have spaces and parentheses in it. After it comes field 3.
    ticks = int(stat.rpartition(")")[2].split()[22 - 3])
    return {"boot": (_PROC / "sys/kernel/random/boot_id").read_text().strip(), "ticks": ticks}


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


def stop_strays(folder: Path, but: str | None = None) -> int:
    """End what runs of this folder and no file knows: what was left behind. Returns how many processes were there.

    Parents go before their children: a worker hands its runs back, if it is not too late. What belongs to the part
    `but` stays.
    """
    strays = _strays(folder, but)
    numbers = {process.pid for process in strays}
    _end([process for process in strays if _parent(process) not in numbers], _GRACE_SECONDS)
    _end(_strays(folder, but), grace=10)
    return len(strays)


def _strays(folder: Path, but: str | None) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            stays = process.pid == os.getpid() or (but is not None and environment.get(PART) == but)
            if environment.get(MARK) == str(folder) and not stays:
                found.append(process)
    return found


def _parent(process: psutil.Process) -> int | None:
    """Number of its parent; None if it has ended."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


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
