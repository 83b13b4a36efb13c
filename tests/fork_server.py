"""A process that has imported the libraries once and forks a child per command: `python -m tests.fork_server FD`.

Importing torch, diffusers and Prefect takes eight seconds of a processor, and end-to-end tests run a hundred commands.
A child is a process like any other: it has its own pid, environment, folder, streams and signals, ends as Python
programs end, and can be killed. What it does not have of its own is the start, and `/proc/PID/environ`; commands whose
start is tested are started as users do it. `tests/forked.py` is the other side.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import selectors
import shutil
import signal
import socket
import sys
import termios
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

MOST_BYTES = 1 << 17
"""Of a request: arguments and environment as JSON."""

LATE = (
    "anyio._backends._asyncio",
    "botocore.session",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "fastapi.encoders",
    "prefect.artifacts",
    "prefect.cli.server",
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.server.api.server",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "s3fs",
    "transformers.models.clip.modeling_clip",
)

Command = Callable[[], object]


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    threads = os.listdir("/proc/self/task")  # noqa: PTH208 - names, as the kernel lists them
    assert len(threads) == 1, "what is forked must have one thread"
    gc.collect()
    gc.freeze()  # or the first collection in each child would copy all memory
    control.send(b"ready")
    command = _serve(control)
    if command is None:
        shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)
    else:
        command()


def _import_all() -> tuple[ModuleType, ...]:
    """Also what is imported late, when the first model is loaded or the first store opened."""
    from prefect_regional_diffusion.flows.common.environment import set_defaults

    set_defaults()
    import prefect_regional_diffusion.flows.batch
    import prefect_regional_diffusion.flows.cli.main
    import prefect_regional_diffusion.flows.grid
    import prefect_regional_diffusion.flows.render
    import prefect_regional_diffusion.flows.server.local

    return (
        *(
            prefect_regional_diffusion.flows.batch,
            prefect_regional_diffusion.flows.cli.main,
            prefect_regional_diffusion.flows.grid,
            prefect_regional_diffusion.flows.server.local,
            prefect_regional_diffusion.flows.render,
        ),
        *map(import_module, LATE),
    )


def _serve(control: socket.socket) -> Command | None:
    """Fork for each request. Returns in children: what the child is to run; and in the parent when nobody asks more."""
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        for readable in (control, ended):
            selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is ended:
                    ended.recv(1 << 16)
                    _report(reports)
                    continue
                text, fds, _, _ = socket.recv_fds(control, MOST_BYTES, 4)
                if not text:
                    return None
                *streams, report = fds
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for number in (*reports.values(), report, control.fileno(), ended.fileno(), wake.fileno()):
                        os.close(number)
                    for sock in (control, ended, wake):
                        sock.detach()
                    return _become(json.loads(text), streams)
                for number in streams:
                    os.close(number)
                reports[pid] = report
                control.send(str(pid).encode())


def _report(reports: dict[int, int]) -> None:
    """Tell of each child that has ended its exit code, as `subprocess` counts."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(report)


def _become(request: dict[str, Any], streams: list[int]) -> Command:
    """Make this child what a new process would be; returns what it is to run."""
    if request["terminal"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - open until the process ends
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    _forget()
    return _command(request["command"])


def _forget() -> None:
    """What a new process draws, measures or reads from its environment when libraries are imported."""
    import numpy as np
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    from prefect_regional_diffusion.flows.cli import stopping
    from prefect_regional_diffusion.flows.common.environment import set_defaults
    from prefect_regional_diffusion.tasks.machine.settings import settings

    random.seed()
    np.random.seed()
    settings.cache_clear()
    stopping.BEGAN = time.monotonic() - time.process_time()
    set_defaults()
    refresh_global_settings_context()
    setup_logging(incremental=False)


def _command(command: list[str]) -> Command:
    """`regional ...` or `python [-W ignore] -c CODE ...`."""
    if Path(command[0]).name == "regional":
        from prefect_regional_diffusion.flows.cli.main import main as regional

        sys.argv = command
        return regional
    if command[1:3] == ["-W", "ignore"]:
        warnings.simplefilter("ignore")
        command = [command[0], *command[3:]]
    assert command[1] == "-c", command
    sys.argv = ["-c", *command[3:]]
    sys.path.insert(0, "")
    code = compile(command[2], "<string>", "exec")
    return lambda: exec(code, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
