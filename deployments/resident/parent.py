"""The resident process: it has imported Prefect and the flows that were asked for, and forks a child for each run.

`deployments.worker` starts it, and holds both ends that it is given: the listening socket, where requests wait while it
starts anew, and a pipe whose end tells that there is no worker any more. It never touches a GPU, runs no kernel and has
one thread, so that children can do all of that. Where code on disk has changed, or runs need another environment, it
becomes a new one. Its children do without it: see `handoff`.
"""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from prefect_regional_diffusion.deployments.resident.child import Child, Run
from prefect_regional_diffusion.deployments.resident.children import Children
from prefect_regional_diffusion.deployments.resident.fitness import adopt, code_on_disk, differing, without_run
from prefect_regional_diffusion.deployments.resident.handoff import NO, close_all, is_own, receive_request
from prefect_regional_diffusion.deployments.resident.keeping import command

_ENGINE = (
    *("prefect.engine", "prefect.flow_engine", "prefect.task_engine"),
    # Prefect imports these when a run begins.
    *("fastapi.encoders", "prefect.utilities.visualization"),
)
_FLOWS = "prefect_regional_diffusion.flows."
_DRAWING = tuple(f"{_FLOWS}{name}." for name in ("original_node", "recurring", "render", "shard"))
"""Entrypoints of flows that load models."""
_FOR_DRAWING = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
)
"""What is imported only when a model is loaded."""
_REQUEST_SECONDS = 5
"""For a process that has connected to say what it wants."""


class Parent:
    """Serves the requests at a socket until nobody holds the other end of a pipe."""

    def __init__(self, listener: socket.socket, keeper: int, most_runs: int) -> None:
        """`keeper`: the end of a pipe from which nothing is read but its end. `most_runs`: see `Children`."""
        self._listener, self._keeper, self._most_runs = listener, keeper, most_runs
        self._environment, self._code = dict(os.environ), code_on_disk()
        self._flows: set[str] = set()
        self._folder = str(Path(listener.getsockname()).parent)
        self._children = Children(most_runs, self._folder)
        self._dead, self._wake = socket.socketpair()
        for end in (self._dead, self._wake):
            end.setblocking(False)

    def serve(self) -> Child | None:
        """Fork for each request. Returns in children, and in the parent (None) when there is no worker any more."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        while True:
            sources = (*self._children.source, self._dead, self._keeper, self._listener)
            readable, _, _ = select.select(sources, (), ())
            source = readable[0]
            if source is self._dead:
                with suppress(BlockingIOError):
                    self._dead.recv(1 << 16)
                self._children.reap()
            elif source == self._keeper:
                # It may have been killed: then nobody else removes what it made.
                shutil.rmtree(self._folder, ignore_errors=True)
                return None
            elif source is self._listener:
                child = self._accept()
                if child is not None:
                    return child
            else:
                self._children.hear()

    def _accept(self) -> Child | None:
        if code_on_disk() != self._code:
            # Unanswered, the request waits for the new one.
            self._become_new(self._environment, "code on disk has changed")
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_SECONDS)
        try:
            request, streams = receive_request(connection) if is_own(connection) else (None, [])
        except (OSError, ValueError, TypeError):
            request, streams = None, []
        if request is None:
            connection.close()
            return None
        try:
            return self._start(Run(connection, request, streams))
        finally:
            close_all(streams)

    def _start(self, run: Run) -> Child | None:
        entrypoint = run.request.environment.get("PREFECT__FLOW_ENTRYPOINT", "")
        problem = self._problem(run.request.environment, entrypoint)
        if problem:
            print(f"A run starts an interpreter: {problem}.", flush=True)
            with suppress(OSError):
                run.connection.sendall(NO)
            run.connection.close()
            return None
        child = self._children.take(run, self._environment, is_kept=entrypoint.startswith(_DRAWING))
        if child is not None:
            # Nothing of the parent is open in a child.
            signal.set_wakeup_fd(-1)
            for end in (self._listener, self._dead, self._wake):
                end.close()
            os.close(self._keeper)
        return child

    def _problem(self, environment: dict[str, str], entrypoint: str) -> str | None:
        """Make this process one whose child can be that of the run; returns why it cannot."""
        environment = without_run(environment)
        names = differing(self._environment, environment, has_flows=bool(self._flows))
        if names:
            # Unanswered, its hand-off goes on alone; the next one will be served.
            self._become_new(environment, f"runs have another {', '.join(names)}")
        if not entrypoint.startswith(_FLOWS):
            return "its flow is none of ours"
        try:
            _import_engine()
            if environment != self._environment:
                adopt(environment)
                self._environment = environment
            if entrypoint not in self._flows:
                import_flow(entrypoint)
                self._flows.add(entrypoint)
        except Exception as error:  # noqa: BLE001 - a new interpreter will meet the same, and the run's log tells of it
            return f"it cannot be imported here ({type(error).__name__})"
        return None if threads() == 1 else "the resident process has threads"

    def _become_new(self, environment: dict[str, str], why: str) -> None:
        """Import everything anew, in this process. Its children go on, and tell their hand-offs how they end."""
        print(f"The resident process starts anew: {why}.", flush=True)
        for number in (self._listener.fileno(), self._keeper):
            os.set_inheritable(number, True)
        again = command(self._listener.fileno(), self._keeper, self._most_runs)
        os.execve(sys.executable, again, environment)  # noqa: S606 - itself


@cache
def _import_engine() -> None:
    """What executes runs. Raises whatever its modules raise."""
    for module in _ENGINE:
        import_module(module)
    from prefect_regional_diffusion.deployments.resident.prefect_internals import share_tls_contexts

    share_tls_contexts()


def import_flow(entrypoint: str) -> None:
    """Import a flow, and what its runs import late. Raises whatever its modules raise."""
    module = entrypoint.rpartition(".")[0]
    for name in (module, *(_FOR_DRAWING if entrypoint.startswith(_DRAWING) else ())):
        import_module(name)
    _end_idle_threads()
    gc.collect()
    gc.freeze()  # or the first collection of each child would copy all memory


def _end_idle_threads() -> None:
    """OpenBLAS, of numpy and of scipy, starts threads when it is imported; it ends them by itself at a fork, and starts
    others where they are needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def threads() -> int:
    """Threads of this process, those of libraries too."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names, as the kernel lists them


def main() -> Callable[[], None] | None:
    """Serve. Returns what a child is to do, which is then the whole program: its frames have nothing of the parent."""
    listener, keeper, most_runs = map(int, sys.argv[1:])
    child = Parent(socket.socket(fileno=listener), keeper, most_runs).serve()
    return child.run if child is not None else None


if __name__ == "__main__":
    run = main()
    if run is not None:
        run()
