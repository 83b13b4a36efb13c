"""The parent's side of its children: one for each run, and perhaps one that keeps models in memory for the next run."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from prefect_regional_diffusion.deployments.resident.child import Child, Run
from prefect_regional_diffusion.deployments.resident.fitness import deployment_of
from prefect_regional_diffusion.deployments.resident.handoff import send_request
from prefect_regional_diffusion.deployments.resident.held_models import remove_held


@dataclass
class Warm:
    """A child that takes one run after the other."""

    pid: int
    socket: socket.socket
    """Where it gets runs, and tells that it has ended one."""
    environment: Mapping[str, str]
    """What its runs have, beside what belongs to each."""
    versions: dict[str, str]
    """Of the deployments that it has served, by their ids."""
    is_waiting: bool = False


class Children:
    """Children by the connections to their runs' hand-offs."""

    def __init__(self, most_runs: int, folder: str) -> None:
        """A child takes at most so many runs, one after the other; with 1, none is kept.

        In `folder` that which is kept tells what it has in memory (`held_models`).
        """
        self._most_runs, self._folder = most_runs, folder
        remove_held(folder)  # of a process that was the parent before this one
        self._runs: dict[int, socket.socket] = {}
        self._warm: Warm | None = None

    @property
    def source(self) -> list[socket.socket]:
        """What is readable when `hear` has something to do."""
        return [self._warm.socket] if self._warm else []

    def take(self, run: Run, environment: Mapping[str, str], *, is_kept: bool) -> Child | None:
        """Give a run to a child. Returns in a new child, what that is to do, and None in the parent.

        `is_kept`: whether the child should be there for the next run, and may be one that was.
        """
        if not is_kept or self._most_runs == 1:
            return self._fork(run, None)
        if self._warm and self._warm.is_waiting:
            if self._give(self._warm, run, environment):
                return None
            self._dismiss(self._warm)
        # One that is at work has its run's models in memory: a second one keeps none.
        return self._fork(run, None) if self._warm else self._fork_warm(run, environment)

    def _give(self, warm: Warm, run: Run, environment: Mapping[str, str]) -> bool:
        deployment, version = deployment_of(run.request.environment)
        if warm.environment != environment or warm.versions.setdefault(deployment, version) != version:
            return False
        try:
            send_request(warm.socket, run.request, [*run.streams, run.connection.fileno()])
        except OSError:
            return False
        warm.is_waiting = False
        self._runs[warm.pid] = run.connection
        return True

    def _fork_warm(self, run: Run, environment: Mapping[str, str]) -> Child | None:
        ours, its = socket.socketpair()
        child = self._fork(run, its)
        if child is None:
            its.close()
            pid = next(reversed(self._runs))
            self._warm = Warm(pid, ours, dict(environment), dict([deployment_of(run.request.environment)]))
        else:
            ours.close()
        return child

    def _fork(self, run: Run, more: socket.socket | None) -> Child | None:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            for connection in (*self._runs.values(), *self.source):
                connection.close()
            run = run._replace(streams=[os.dup(stream) for stream in run.streams])
            return Child(run, more, self._most_runs, self._folder)
        self._runs[pid] = run.connection
        return None

    def _dismiss(self, warm: Warm) -> None:
        """End a child that waits: its memory, the GPU's too, is free then."""
        with suppress(ProcessLookupError):
            os.kill(warm.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(warm.pid, 0)
        self._forget(warm.pid)

    def hear(self) -> None:
        """The child that is kept has ended a run well, or has ended itself."""
        assert self._warm is not None
        said = self._warm.socket.recv(1)
        if said:
            self._warm.is_waiting = True
            self._tell_ended(self._warm.pid, 0)
        else:
            self._forget(self._warm.pid)

    def reap(self) -> None:
        """Tell the hand-off of each child that has ended its exit code, as `subprocess` counts."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._forget(pid)
                self._tell_ended(pid, os.waitstatus_to_exitcode(status))

    def _forget(self, pid: int) -> None:
        if self._warm and self._warm.pid == pid:
            self._warm.socket.close()
            self._warm = None
            remove_held(self._folder)

    def _tell_ended(self, pid: int, code: int) -> None:
        connection = self._runs.pop(pid, None)
        if connection is None:  # it waited, or is from before the parent became a new process
            return
        with suppress(OSError):  # the hand-off was killed
            connection.sendall(b"ended %d\n" % code)
        connection.close()
