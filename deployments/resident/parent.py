"""The resident process: it has imported Prefect and the flows that were asked for, and forks a child for each run.

`deployments.worker` starts it, and holds both ends that it is given: the listening socket, where requests wait while it
starts anew, and a pipe whose end tells that there is no worker any more. It never touches a GPU, runs no kernel and has
one thread, so that children can do all of that. Where code on disk has changed, or runs need another environment, it
becomes a new one. Its children do without it: see `handoff`.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from prefect_regional_diffusion.deployments.resident.child import Child
from prefect_regional_diffusion.deployments.resident.fitness import adopt, code_on_disk, differing, without_run
from prefect_regional_diffusion.deployments.resident.handoff import NO, READY, Request, is_own, receive_request
from prefect_regional_diffusion.deployments.resident.keeping import command

_FLOWS = "prefect_regional_diffusion.flows."
_DRAWING = ("original_node", "recurring", "render", "shard")
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

    def __init__(self, listener: socket.socket, keeper: int) -> None:
        """`keeper`: the end of a pipe from which nothing is read but its end."""
        self._listener, self._keeper = listener, keeper
        self._environment, self._code = dict(os.environ), code_on_disk()
        self._flows: set[str] = set()
        self._runs: dict[int, socket.socket] = {}
        """Connections to the hand-offs of runs, by the number of the child."""
        self._dead, wake = socket.socketpair()
        for end in (self._dead, wake):
            end.setblocking(False)
        self._wake = wake

    def _load(self, entrypoint: str) -> None:
        """Import a flow, and what its runs import late. Raises whatever its modules raise."""
        if entrypoint in self._flows:
            return
        module = entrypoint.rpartition(".")[0]
        if not module.startswith(_FLOWS):
            raise ValueError(f"{entrypoint} is no flow of ours")
        for name in (module, *(_FOR_DRAWING if module.removeprefix(_FLOWS) in _DRAWING else ())):
            import_module(name)
        self._flows.add(entrypoint)
        _end_idle_threads()
        gc.collect()
        gc.freeze()  # or the first collection of each child would copy all memory

    def serve(self) -> Child | None:
        """Fork for each request. Returns in children, and in the parent (None) when there is no worker any more."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        with selectors.PollSelector() as selector:
            for source in (self._listener, self._dead, self._keeper):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._dead:
                        self._report_ended()
                    elif key.fileobj == self._keeper:
                        return None
                    else:
                        child = self._accept()
                        if child is not None:
                            return child

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
            return self._fork(connection, request, streams)
        finally:
            for stream in streams:
                os.close(stream)

    def _fork(self, connection: socket.socket, request: Request, streams: list[int]) -> Child | None:
        problem = self._problem(request)
        if problem:
            print(f"A run starts an interpreter: {problem}", flush=True)
            with suppress(OSError):
                connection.sendall(NO)
            connection.close()
            return None
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._leave()
            return Child(connection, request, [os.dup(stream) for stream in streams])
        self._runs[pid] = connection
        with suppress(OSError):
            connection.sendall(READY)
        return None

    def _problem(self, request: Request) -> str | None:
        """Make this process one whose child can be that of the run; returns why it cannot."""
        environment = without_run(request.environment)
        names = differing(self._environment, environment, has_flows=bool(self._flows))
        if names:
            # Unanswered, its hand-off goes on alone; the next one will be served.
            self._become_new(environment, f"runs have another {', '.join(names)}")
        if environment != self._environment:
            adopt(environment)
            self._environment = environment
        try:
            self._load(request.environment.get("PREFECT__FLOW_ENTRYPOINT", ""))
        except Exception as error:  # noqa: BLE001 - a new interpreter will meet the same, and the run's log tells of it
            return f"the flow cannot be imported here ({type(error).__name__})"
        return None if _threads() == 1 else "the resident process has threads"

    def _leave(self) -> None:
        """Nothing of the parent is open in a child: neither its socket nor the connections of other runs."""
        signal.set_wakeup_fd(-1)
        for end in (self._listener, self._dead, self._wake, *self._runs.values()):
            end.close()
        os.close(self._keeper)

    def _report_ended(self) -> None:
        """Tell the hand-off of each child that has ended its exit code, as `subprocess` counts."""
        with suppress(BlockingIOError):
            self._dead.recv(1 << 16)
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                connection = self._runs.pop(pid, None)
                if connection is None:  # from before this process became a new one
                    continue
                with suppress(OSError):  # the hand-off was killed
                    connection.sendall(b"ended %d\n" % os.waitstatus_to_exitcode(status))
                connection.close()

    def _become_new(self, environment: dict[str, str], why: str) -> None:
        """Import everything anew, in this process. Its children go on, and tell their hand-offs how they end."""
        print(f"The resident process starts anew: {why}.", flush=True)
        for number in (self._listener.fileno(), self._keeper):
            os.set_inheritable(number, True)
        os.execve(sys.executable, command(self._listener.fileno(), self._keeper), environment)  # noqa: S606 - itself


def _end_idle_threads() -> None:
    """OpenBLAS, of numpy and of scipy, starts threads when it is imported; it ends them by itself at a fork, and starts
    others where they are needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names, as the kernel lists them


def main() -> Callable[[], None] | None:
    """Serve. Returns what a child is to do, which is then the whole program: its frames have nothing of the parent."""
    import_module("prefect.engine")
    import_module("prefect.flow_engine")
    import_module("prefect.task_engine")
    listener = socket.socket(fileno=int(sys.argv[1]))
    parent = Parent(listener, int(sys.argv[2]))
    child = parent.serve()
    return child.run if child is not None else None


if __name__ == "__main__":
    run = main()
    if run is not None:
        run()
