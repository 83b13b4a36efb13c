"""Background processes of one machine: started once, found again, stopped. A small file says who each one is.

A process is known by its number, by the boot of the machine and by the ticks from there to its start: the system's
clock may be set meanwhile, and neither of them moves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from prefect_regional_diffusion.flows.server.local import OWNER_TAG, PART
from prefect_regional_diffusion.flows.server.private_files import open_private, read_private
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_lines

_PROC = Path("/proc")

_GRACE_SECONDS = 60
"""How long a worker may take to hand its runs back."""


def start(
    folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, port: int
) -> bool:
    """Start a process in the background unless it runs already; its output goes to `folder`/NAME.log.

    What it writes, it and its children, is for this user alone. `port` is that of the server that it is, or talks to.
    Returns whether it was started. Raises OSError where its log cannot be written, or is not this user's own.
    """
    if running(folder, name) is not None:
        return False
    with private_log(folder, name) as log:
        child = subprocess.Popen(  # noqa: S603 - commands are spelled in this package
            command,
            cwd=cwd,
            env={**environment, OWNER_TAG: str(folder), PART: name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
        )
    with suppress(psutil.Error):
        _environment(psutil.Process(child.pid))
    identity = {"pid": child.pid, **birth(child.pid), "port": port}
    # Anew: what lies there may be a link, or open to others.
    _file(folder, name).unlink(missing_ok=True)
    with os.fdopen(open_private(_file(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        file.write(json.dumps(identity) + "\n")
    return True


def private_log(folder: Path, name: str) -> BinaryIO:
    """The log of that name, to be added to, for this user alone. Raises OSError where another's or no plain file is."""
    log = os.fdopen(open_private(folder / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
    os.fchmod(log.fileno(), 0o600)
    return log


def running(folder: Path, name: str) -> psutil.Process | None:
    """The process of that name if it still runs; not one that got its number after a reboot, nor one without our mark.

    Whoever writes such a file could name any process of this user.
    """
    try:
        identity = _identity(folder, name)
        process = psutil.Process(identity["pid"])
        actual = birth(process.pid)
        alive = actual.items() <= identity.items() and process.status() != psutil.STATUS_ZOMBIE
        return process if alive and _part(process, _environment(process), folder) == name else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, psutil.Error):
        return None


def _environment(process: psutil.Process) -> dict[str, str]:
    """A process' environment, waited for: while another program begins in it (`unshare` becomes PostgreSQL), the kernel
    shows none for a moment. Raises psutil.Error."""
    for _ in range(500):
        environment = process.environ()
        if environment or process.status() == psutil.STATUS_ZOMBIE:
            return environment
        time.sleep(0.01)
    return {}


def _part(process: psutil.Process, environment: Mapping[str, str], folder: Path) -> str | None:
    """Which part of a folder a process belongs to; None for all others', and other users'. Raises psutil.Error."""
    if process.uids().real != os.getuid():
        return None
    return environment.get(PART, "") if environment.get(OWNER_TAG) == str(folder) else None


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
    if running(folder, name) is None:
        return None
    port = _identity(folder, name).get("port")
    return port if isinstance(port, int) else None


def stop(folder: Path, name: str, polite: signal.Signals = signal.SIGTERM) -> bool:
    """End a process, first politely, by that signal; returns whether it ran."""
    process = running(folder, name)
    if process is not None:
        _end([process], _GRACE_SECONDS, polite)
    _file(folder, name).unlink(missing_ok=True)
    return process is not None


def stop_strays(folder: Path, but: Collection[str] = ()) -> int:
    """End what runs of this folder and no file knows: what was left behind. Returns how many processes were there.

    Parents go before their children: a worker hands its runs back, if it is not too late. What belongs to the parts
    `but` stays.
    """
    strays = _strays(folder, but)
    numbers = {process.pid for process in strays}
    _end([process for process in strays if _parent(process) not in numbers], _GRACE_SECONDS)
    _end(_strays(folder, but), grace=10)
    return len(strays)


def _strays(folder: Path, but: Collection[str]) -> list[psutil.Process]:
    strays: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # Not waited for: the kernel's own processes never have one.
            part = _part(process, process.environ(), folder)
            if part is not None and part not in but and process.pid != os.getpid():
                strays.append(process)
    return strays


def _parent(process: psutil.Process) -> int | None:
    """Number of its parent; None if it has ended."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _end(processes: list[psutil.Process], grace: float, polite: signal.Signals = signal.SIGTERM) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(polite)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def _identity(folder: Path, name: str) -> dict[str, Any]:
    return json.loads(read_private(_file(folder, name)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def log_tail(folder: Path, name: str, lines: int = 20) -> str:
    """The last lines of a process' log, without control characters and keys."""
    with suppress(OSError), os.fdopen(open_private(folder / f"{name}.log", os.O_RDONLY), errors="replace") as log:
        return plain_lines("\n".join(log.read().splitlines()[-lines:]))
    return ""
