"""A resident process, hand-offs and forked children: real ones, with a piece of code in the place of Prefect's engine.

With the engine, a server and workers: test_up.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import prefect_regional_diffusion.deployments.resident as resident_package
from prefect_regional_diffusion.deployments.resident import handoff, keeping
from prefect_regional_diffusion.deployments.resident.held_models import read_held
from prefect_regional_diffusion.tasks.machine.device_lock import DeviceLock
from tests import forked, resident_parent
from tests.processes import environment, has_ended, living

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("resident"), pytest.mark.timeout(300)]

DRAWING = "prefect_regional_diffusion.flows.render.render"
FLOW = "prefect_regional_diffusion.flows.reap.reap"


class Site:
    """A resident process with its keeper's part, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, resident_parent.steady(environment(folder))
        self.resident = keeping.Resident(most_runs=3)
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._closed.wait(0.1):
            self.resident.ensure_running()

    def close(self) -> None:
        self._closed.set()
        self._keeper.join()
        self.resident.close()

    @property
    def parent(self) -> psutil.Process:
        (parent,) = living(lambda child: "tests.resident_parent" in child.cmdline(), psutil.Process().children())
        return parent

    def start(self, code: str, **variables: str) -> subprocess.Popen[str]:
        """The hand-off of a run that executes some code."""
        run = {"PREFECT__CODE": code, "PREFECT__FLOW_ENTRYPOINT": FLOW, "PREFECT__FLOW_RUN_ID": "0123456789"}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", handoff.__file__, self.resident.path],
            env=self.env | run | variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def waiting(self, then: str = "", **variables: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        """The hand-off and the child of a run that waits until a file is there."""
        file = self.folder / f"go-{time.monotonic_ns()}"
        process = self.start(
            "import os, pathlib, time\n"
            "print(os.getpid(), flush=True)\n"
            f"while not pathlib.Path({str(file)!r}).exists(): time.sleep(0.05)\n{then}",
            **variables,
        )
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        self.let_go = file.touch
        return process, child

    let_go: Callable[[], None]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "command", resident_parent.command)
        folder = tmp_path_factory.mktemp("resident")
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        site = Site(folder)
        yield site
        site.close()


def said(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What a run printed, and how its hand-off ended."""
    out, _ = process.communicate(timeout=120)
    return out, process.returncode


def test_a_run_has_its_own_environment_folder_streams_and_name(site: Site) -> None:
    code = "import os, sys; print(os.environ['PREFECT__X'], os.getcwd(), open('/proc/self/comm').read(), sys.path[0])"
    out, ended = said(site.start(code, PREFECT__X="y"))
    assert out == f"y {site.folder} run-01234567\n {site.folder}\n"
    assert ended == 0


def test_its_exit_code_is_the_hand_offs(site: Site) -> None:
    assert said(site.start("import sys; sys.exit(3)")) == ("", 3)
    out, ended = said(site.start("1 / 0"))
    assert out.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert ended == 1


def test_what_is_to_be_done_at_the_end_is_done_first(site: Site) -> None:
    code = "import atexit, threading, time\natexit.register(print, 'last')\n"
    code += "threading.Thread(target=lambda: (time.sleep(0.3), print('first'))).start()"
    assert said(site.start(code)) == ("first\nlast\n", 0)


def test_runs_have_one_parent_and_each_a_process_of_its_own(site: Site) -> None:
    code = "import os; print(os.getppid(), os.getpid(), os.getsid(0), len(os.listdir('/proc/self/fd')))"
    first, second = (said(site.start(code))[0].split() for _ in range(2))
    assert first[0] == second[0] == str(site.parent.pid)
    assert first[1] == first[2] != second[1]
    assert first[3] == second[3], "descriptors of other runs are open"


def test_random_numbers_differ_from_run_to_run(site: Site) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.random())"
    first, second = (said(site.start(code))[0].split() for _ in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run(site: Site, number: signal.Signals) -> None:
    process, child = site.waiting()
    process.send_signal(number)
    out, ended = said(process)
    assert ended == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 1}[number]
    assert ("KeyboardInterrupt" in out) == (number == signal.SIGINT)
    assert not child.is_running()


def test_a_run_that_handles_sigterm_ends_as_it_likes(site: Site) -> None:
    handler = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    process = site.start(handler + "print('here', flush=True)\ntime.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    assert said(process) == ("", 7)


def test_a_killed_run_ends_its_hand_off_by_the_same_signal(site: Site) -> None:
    process, child = site.waiting()
    child.kill()
    assert said(process)[1] == -signal.SIGKILL


def test_a_killed_hand_off_takes_its_run_along(site: Site) -> None:
    process, child = site.waiting()
    process.kill()
    said(process)
    child.wait(10)


def test_a_run_outlives_the_resident_process_and_the_next_one_is_served(site: Site) -> None:
    process, _ = site.waiting("import sys; sys.exit(5)")
    before = site.parent
    before.kill()
    site.let_go()
    assert said(process)[1] == 5
    second = site.start("import os; print(os.getppid())")
    assert said(second)[0] == f"{site.parent.pid}\n"
    assert site.parent != before


def test_a_killed_run_is_known_to_be_one_without_the_resident_process(site: Site) -> None:
    process, child = site.waiting()
    site.parent.kill()
    child.kill()
    assert said(process)[1] == -signal.SIGKILL


def test_changed_code_is_imported_anew_and_other_runs_go_on(site: Site) -> None:
    process, _ = site.waiting("import sys; sys.exit(6)")
    code = "import os, prefect; print(os.getppid(), id(prefect))"
    first, second = (said(site.start(code))[0].split() for _ in range(2))
    assert first == second
    os.utime(Path(resident_package.__file__))
    third = said(site.start(code))[0].split()
    assert third[0] == first[0], "it is the same process"
    assert third[1] != first[1], "it has not imported anything anew"
    site.let_go()
    assert said(process)[1] == 6


def test_another_environment_is_that_of_the_next_run(site: Site) -> None:
    """Where libraries may have read it already, the run that brings it starts an interpreter, which finds no run."""
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ['REGIONAL_STORE'])"
    free = said(site.start(code, REGIONAL_STORE="here"))
    assert free[0].endswith(" here\n")
    out, ended = said(site.start(code, OMP_NUM_THREADS="3", REGIONAL_STORE="there"))
    assert "Invalid flow run id" in out
    assert ended == 1
    assert said(site.start(code, OMP_NUM_THREADS="3", REGIONAL_STORE="there")) == ("3 there\n", 0)


def test_a_flow_that_is_none_of_ours_starts_an_interpreter(site: Site) -> None:
    out, ended = said(site.start("", PREFECT__FLOW_ENTRYPOINT="os.system"))
    assert "Invalid flow run id" in out
    assert ended == 1


STATE = """
import os, random, sys
import numpy, torch
numbers = torch.rand(2).tolist()
print(os.getpid(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark, os.getcwd(),
      os.environ.get("LEFT"), "left" in sys.path, numbers, sys.argv, flush=True)
"""
DISTURB = """
torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.backends.cudnn.benchmark = True
torch.manual_seed(1); os.chdir("/"); os.environ["LEFT"] = "x"; sys.path.append("left"); sys.argv = ["left"]
"""


def drawn(site: Site, code: str, **variables: str) -> tuple[str, str]:
    """Process and words of a run of a flow that draws."""
    out, ended = said(site.start(code, **({"PREFECT__FLOW_ENTRYPOINT": DRAWING} | variables)))
    assert ended == 0, out
    process, _, words = out.partition(" ")
    return process, words


def test_a_process_that_draws_takes_three_runs_and_each_begins_as_the_first(site: Site) -> None:
    processes, words = zip(*(drawn(site, STATE + DISTURB) for _ in range(4)), strict=True)
    assert len({*processes[:3]}) == 1
    assert processes[3] != processes[0]
    assert len({*words}) == 1


def test_a_run_that_ends_otherwise_than_well_is_the_last_of_its_process(site: Site) -> None:
    for end in ("sys.exit(0)", "raise ValueError", "os.kill(os.getpid(), 15)"):
        first, _ = drawn(site, STATE)
        out, _ = said(site.start(STATE + end, PREFECT__FLOW_ENTRYPOINT=DRAWING))
        assert out.startswith(first), "it should have been the process that waited"
        assert drawn(site, STATE)[0] != first
        said(site.start("raise ValueError", PREFECT__FLOW_ENTRYPOINT=DRAWING))


MEMORY = """
import resource
import psutil
steps = []
size = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
while len(steps) < 1000:
    steps.append(torch.zeros(1 << 22))
"""


def test_a_run_without_memory_ends_alone_and_the_next_one_has_all_of_it(site: Site) -> None:
    """A limit that the kernel holds (RLIMIT_AS): allocations fail, in torch first and then in whatever comes next."""
    said(site.start("raise ValueError", PREFECT__FLOW_ENTRYPOINT=DRAWING))
    first, _ = drawn(site, STATE)
    out, ended = said(site.start(STATE + MEMORY, PREFECT__FLOW_ENTRYPOINT=DRAWING))
    assert out.startswith(first), "it should have been the process that waited"
    assert "can't allocate memory" in out
    assert ended == 1
    second, _ = drawn(site, "import resource; assert resource.getrlimit(resource.RLIMIT_AS)[0] < 0\n" + STATE)
    assert second != first


def test_a_process_serves_one_version_of_each_deployment(site: Site) -> None:
    """A deployment that was made anew may mean other code; several deployments are served in turn."""

    def of(deployment: str, version: str) -> str:
        process, _ = drawn(site, STATE, PREFECT__DEPLOYMENT_ID=deployment, PREFECT__DEPLOYMENT_VERSION=version)
        return process

    said(site.start("raise ValueError", PREFECT__FLOW_ENTRYPOINT=DRAWING))
    first = of("render", "1")
    assert of("shard", "7") == first
    second = of("render", "2")
    assert second != first
    assert has_ended(int(first))
    assert of("render", "2") == second


def test_a_waiting_process_goes_with_its_environment_and_with_the_resident_process(site: Site) -> None:
    first, _ = drawn(site, STATE)
    second, _ = drawn(site, STATE, REGIONAL_STORE="elsewhere")
    assert second != first
    assert has_ended(int(first))
    waiting = psutil.Process(int(second))
    assert waiting.name() == "waits-for-runs"
    site.parent.kill()
    waiting.wait(10)


HOLD = """
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
for name in names:
    with loaded_parts().using(name, 10, object, name):
        pass
"""


def test_what_is_in_memory_is_known_while_a_process_waits(site: Site) -> None:
    def held() -> frozenset[str]:
        return read_held(str(Path(site.resident.path).parent))

    said(site.start("raise ValueError", PREFECT__FLOW_ENTRYPOINT=DRAWING))
    assert not held()
    drawn(site, STATE + "names = ['sdxl']" + HOLD)
    assert held() == {"sdxl"}
    last, _ = drawn(site, STATE + "names = ['flux', 'style.safetensors']" + HOLD)
    assert held() == {"sdxl", "flux", "style.safetensors"}
    psutil.Process(int(last)).kill()
    deadline = time.monotonic() + 10
    while held():
        assert time.monotonic() < deadline, "it is gone, and nothing is in memory"
        time.sleep(0.05)
    drawn(site, STATE + "names = ['sdxl']" + HOLD)
    said(site.start("raise ValueError", PREFECT__FLOW_ENTRYPOINT=DRAWING))
    assert not held()


def test_runs_at_the_same_time_have_a_process_each(site: Site) -> None:
    process, child = site.waiting(PREFECT__FLOW_ENTRYPOINT=DRAWING)
    other, _ = drawn(site, STATE)
    assert other != str(child.pid)
    site.let_go()
    assert said(process)[1] == 0
    assert drawn(site, STATE)[0] == str(child.pid)


SERVICES = """
import gc, weakref
from prefect_regional_diffusion.deployments.resident.prefect_internals import QueueService
from prefect_regional_diffusion.deployments.resident.renewal import ProcessState

class Sender(QueueService):
    sent = []
    async def _handle(self, item):
        self.sent.append(item)
    def send(self, item):
        self._queue.put_nowait(item)

state = ProcessState()
services = []
for number in range(3):
    service = Sender.instance()
    service.send(number)
    services.append(weakref.ref(service))
    del service
    assert state.restore()
gc.collect()
print(Sender.sent, [service() for service in services])
"""


def test_what_sends_a_runs_log_and_events_is_gone_once_all_is_sent(tmp_path: Path) -> None:
    """Or each run would leave 2 MB in a process that is kept."""
    done = forked.run([sys.executable, "-c", SERVICES], cwd=tmp_path, env=environment(tmp_path))
    assert done.stdout == "[0, 1, 2] [None, None, None]\n", done.stderr


FREED = """
import psutil
from prefect_regional_diffusion.deployments.resident.renewal import ProcessState

state = ProcessState()
assert state.restore()
blocks = [b"x" * 60_000 for _ in range(4000)]
kept = blocks[::40]
del blocks
before = psutil.Process().memory_info().rss
assert state.restore()
print((before - psutil.Process().memory_info().rss) / 60_000 / 3900)
"""


def test_what_a_run_has_freed_is_the_systems_again(tmp_path: Path) -> None:
    """Also where it lies between what is kept: the C library gives back the end of its heaps alone."""
    done = forked.run([sys.executable, "-c", FREED], cwd=tmp_path, env=environment(tmp_path))
    assert float(done.stdout) > 0.8, done.stderr


LOCK = """
import asyncio
from prefect_regional_diffusion.tasks.machine.device_lock import take_device
from prefect_regional_diffusion.tasks.machine.settings import settings
settings.cache_clear()
asyncio.run(take_device())
"""


def test_a_waiting_process_ends_when_another_one_wants_its_device(site: Site) -> None:
    name = f"test-{time.monotonic_ns()}"
    first, _ = drawn(site, STATE + LOCK, REGIONAL_DEVICE_LOCK=name)
    assert drawn(site, STATE + LOCK, REGIONAL_DEVICE_LOCK=name)[0] == first, "nobody wanted it"
    other = DeviceLock()
    asyncio.run(asyncio.wait_for(other.take(name), 30))
    assert other.socket is not None
    with other.socket:
        assert has_ended(int(first))
        waits = site.start(LOCK + "print('has it')", PREFECT__FLOW_ENTRYPOINT=DRAWING, REGIONAL_DEVICE_LOCK=name)
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(3)
    assert said(waits) == ("has it\n", 0)


IMPORTS = """
import torch
calls = []
torch.cuda.is_available = lambda: calls.append("is_available")
torch.cuda.device_count = lambda: calls.append("device_count")
from prefect_regional_diffusion.deployments.resident import parent
for flow in ("render.render", "shard.shard", "recurring.recurring", "original_node.original_node", "grid.grid"):
    parent.import_flow("prefect_regional_diffusion.flows." + flow)
print(calls, parent.threads())
"""


def test_importing_asks_no_gpu_and_leaves_one_thread(tmp_path: Path) -> None:
    """A process that has asked the driver has children that cannot use it."""
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("OMP_NUM")}
    process = subprocess.run([sys.executable, "-c", IMPORTS], env=env, capture_output=True, text=True, check=False)
    assert process.stdout == "[] 1\n", process.stderr


def test_where_nobody_serves_an_interpreter_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", handoff.__file__, str(tmp_path / "nobody")]
    env = environment(tmp_path) | {"PREFECT__FLOW_RUN_ID": "x"}
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "Invalid flow run id" in process.stderr + process.stdout
    assert process.returncode == 1


def test_nobody_else_may_enter_and_nothing_is_left(site: Site) -> None:
    folder = Path(site.resident.path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    other = keeping.Resident(1)
    place = Path(other.path).parent
    assert place.exists()
    other.close()
    assert not place.exists()
