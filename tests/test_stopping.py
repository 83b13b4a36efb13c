"""Ctrl-C in a real terminal, SIGTERM, kill -9, and a home that cannot be written: what a command says and leaves."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.flows.common.spent_time import spent
from tests import s3
from tests.fault_proxy import Fault, FaultProxy
from tests.forked import run
from tests.processes import EXAMPLES, ROOT, environment, post, regional
from tests.terminal import Terminal

pytestmark = pytest.mark.e2e
JOB = next(path for path in EXAMPLES if path.stem == "two_halves")
GRID = ROOT / "examples" / "grids" / "seeds.yaml"
SECONDS = 15
"""It takes 3 s at most on a machine with nothing else to do; Prefect and threads that sleep took 69 s and more."""
NO_STEP = "stopped before the first step; the same command goes on"
SOME_STEPS = r"stopped after \d+ of 300 steps; the same command goes on"

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in a terminal of its own; what is left of it at the end is killed."""
    terminals: list[Terminal] = []

    def started(*arguments: object, whole_start: bool = False, **variables: str) -> Terminal:
        home = tmp_path / "prefect"
        home.mkdir(exist_ok=True)
        env = environment(home) | variables
        terminals.append(Terminal(regional(*arguments), tmp_path, env, f"{uuid4()}", whole_start=whole_start))
        terminals[-1].until("its beginning", terminals[-1].listens)
        return terminals[-1]

    yield started
    for terminal in terminals:
        terminal.close()


def ends(terminal: Terminal, line: str, code: int = 130) -> None:
    """Press Ctrl-C, or for another code than 130 send SIGTERM: one line, that exit code, and nothing is left."""
    if code == 130:
        terminal.press_ctrl_c()
    else:
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.wait(SECONDS) == code
    shown = [text.removeprefix("^C") for text in terminal.text.splitlines()]
    # A bar, what was loaded, the run's address, and stores that are waited for are there before.
    said = [text for text in shown if text and not re.match(r"preparing|loaded|sampling|http|.* does not answer", text)]
    assert len(said) == 1, terminal.text
    assert re.fullmatch(line, said[0]), terminal.text
    assert terminal.shown.count(b"\x1b[?25l") == terminal.shown.count(b"\x1b[?25h"), "the cursor is hidden"
    none_is_left(terminal)


def none_is_left(terminal: Terminal) -> None:
    deadline = time.monotonic() + 10
    while terminal.processes():
        assert time.monotonic() < deadline, [process.cmdline() for process in terminal.processes()]
        time.sleep(0.1)


def step_of(terminal: Terminal) -> int:
    """The step that the bar shows."""
    found = re.findall(rb"(\d+)/300", terminal.shown)
    return int(found[-1]) if found else 0


@pytest.mark.parametrize("pause", [0, 0.4, 1.5])
def test_while_it_starts(pause: float, start: Start) -> None:
    command = start("render", JOB, whole_start=True)
    time.sleep(pause)
    ends(command, f"stopped|{NO_STEP}")


def test_while_it_samples_and_the_same_command_goes_on(start: Start, tmp_path: Path) -> None:
    for further in (1, 5, 20):
        stored = max((int(state.stem) for state in tmp_path.glob("**/latents/*/*.safetensors")), default=0)
        command = start("render", JOB, "--set", "steps=300")
        command.until("a step", lambda command=command: step_of(command) > 0)
        assert step_of(command) >= stored, "what was stored was drawn again"
        command.until("steps", lambda command=command, until=stored + further: step_of(command) >= until)
        ends(command, SOME_STEPS)
    assert stored > 0, "an interrupted run kept nothing"


def test_told_by_the_system_it_ends_as_well(start: Start) -> None:
    command = start("render", JOB, "--set", "steps=300")
    command.until("a step", lambda: step_of(command) > 0)
    ends(command, SOME_STEPS, 143)


class Silent:
    """A port that takes connections and never says anything."""

    def __init__(self) -> None:
        self._port = socket.create_server(("127.0.0.1", 0), backlog=50)
        self._port.settimeout(120)
        self.url = f"http://127.0.0.1:{self._port.getsockname()[1]}"
        self._open: list[socket.socket] = []

    def wait_for_somebody(self) -> None:
        self._open.append(self._port.accept()[0])

    def close(self) -> None:
        for one in (self._port, *self._open):
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.close()


KEYS = {"REGIONAL_S3_KEY": s3.KEY, "REGIONAL_S3_SECRET": s3.SECRET}


def test_while_it_waits_for_a_store(silent: Silent, start: Start, tmp_path: Path) -> None:
    """One that is silent from the beginning, and two that go away while the run samples."""
    command = start("render", JOB, "--store", "s3://latents/x", REGIONAL_S3_ENDPOINT=silent.url, **KEYS)
    silent.wait_for_somebody()
    ends(command, NO_STEP)
    with s3.s3_server(tmp_path, "latents") as port:
        faults: tuple[tuple[Fault, int], ...] = (("refused", 1), ("SlowDown", 3))
        for fault, tries in faults:
            proxy = FaultProxy(port)
            options = ("--store", f"s3://latents/{fault}", "--set", "steps=300", "--chunk", "2")
            command = start("render", JOB, *options, REGIONAL_S3_ENDPOINT=proxy.url, **KEYS)
            command.until("some steps", lambda command=command: step_of(command) > 2)
            proxy.fail(fault)
            command.until("patience", lambda command=command, n=tries: command.shown.count(b"does not answer") >= n)
            ends(command, SOME_STEPS)


@pytest.mark.parametrize(
    ("arguments", "pause", "line"),
    [
        (("render", JOB), 0, NO_STEP),
        (("grid", GRID), 1.5, NO_STEP),
        (("submit", JOB, "--watch"), 0.5, "stopped; nothing was submitted"),
    ],
)
def test_while_it_waits_for_a_server(
    arguments: tuple[object, ...], pause: float, line: str, silent: Silent, start: Start
) -> None:
    command = start(*arguments, PREFECT_API_URL=f"{silent.url}/api")
    silent.wait_for_somebody()
    time.sleep(pause)
    ends(command, line)


@pytest.mark.parametrize("when", ["the server has begun", "the server is setting up", "it samples"])
def test_as_a_flow_run_with_a_server_of_its_own(when: str, start: Start) -> None:
    command = start("render", JOB, "--flow", "--set", "steps=300")
    command.until("the server", lambda: len(command.processes()) == 2)
    if when == "the server is setting up":
        time.sleep(3)
    elif when == "it samples":
        command.until("a step", lambda: step_of(command) > 0)
    ends(command, SOME_STEPS if when == "it samples" else NO_STEP)


def test_a_flow_run_on_a_server_says_how_it_ended(start: Start, server: str) -> None:
    seed = uuid4().int % 2**32
    command = start("render", JOB, "--set", "steps=300", "--set", f"seed={seed}", PREFECT_API_URL=server)
    command.until("a step", lambda: step_of(command) > 0)
    ends(command, SOME_STEPS)

    def state() -> str:
        runs = post(server, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 50})
        (mine,) = [run for run in runs if run["parameters"].get("job", {}).get("seed") == seed]
        return mine["state_type"]

    deadline = time.monotonic() + 20  # a busy server may still be at what it was told last
    while (found := state()) == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == "CRASHED"


def test_who_stops_watching_stops_no_run(start: Start, server: str) -> None:
    flow = post(server, "flows/", {"name": "render"})["id"]
    post(server, "deployments/", {"name": "render", "flow_id": flow})
    command = start("submit", JOB, "--watch", PREFECT_API_URL=server)
    command.until("the first state", lambda: b"Scheduled" in command.shown or b"Late" in command.shown)
    command.press_ctrl_c()
    assert command.wait(SECONDS) == 130
    line = command.text.strip().splitlines()[-1].removeprefix("^C")
    run = re.fullmatch(r"stopped watching; the run goes on: http://\S*/([-0-9a-f]{36})\S*", line)
    assert run, command.text
    (found,) = post(server, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run[1]]}}})
    assert found["state_type"] == "SCHEDULED"


def test_killed_commands_leave_no_process(start: Start, silent: Silent, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.yaml").write_text(JOB.read_text())
    commands = {
        "plan": start("plan", JOB),
        "submit": start("submit", JOB, "--watch", PREFECT_API_URL=f"{silent.url}/api"),
        "render": start("render", JOB, "--set", "steps=300"),
        "grid": start("grid", GRID),
        "batch": start("batch", "jobs/*.yaml"),
    }
    silent.wait_for_somebody()
    commands["render"].until("a step", lambda: step_of(commands["render"]) > 0)
    for command in commands.values():
        command.process.kill()
    for of in (("render", JOB), ("grid", GRID), ("batch", "jobs/*.yaml")):
        commands[f"{of[0]} --flow"] = command = start(*of, "--flow")
        command.until("the server", lambda command=command: len(command.processes()) == 2)
        time.sleep(1)
        command.process.kill()
    for command in commands.values():
        command.process.wait()
        none_is_left(command)


def run_in_home(home: object, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder) | {"HOME": str(home), "TMPDIR": str(folder)}
    del env["PREFECT_HOME"]
    command = regional("render", JOB, "--set", "steps=2", *options)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("--flow",)], ids=["plain", "flow"])
def test_homes(options: tuple[str, ...], tmp_path: Path) -> None:
    """One that cannot be written does not matter, and in one that can nothing is left; nor are temporary folders."""
    done = run_in_home("/proc/nonexistent", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(loaded .*\n)*(sampling .*\n)?", done.stderr), done.stderr
    told = re.search(r"([\d.]+) s \(start ([\d.]+), load ([\d.]+), sample ([\d.]+), write ([\d.]+)\)", done.stdout)
    assert told, done.stdout
    if not options:
        return
    (home := tmp_path / "home").mkdir()
    done = run_in_home(home, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    deadline = time.monotonic() + 10
    while list(tmp_path.glob("regional-server-*")):
        assert time.monotonic() < deadline, "a folder is left"
        time.sleep(0.1)


def test_a_block_needs_a_server(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"REGIONAL_STORE_BLOCK": "keys"}
    command = regional("render", JOB, "--store", "s3://latents/x")
    done = run(command, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("REGIONAL_STORE_BLOCK keys cannot be read:")
    assert "PREFECT_API_URL" in done.stderr


@given(
    st.dictionaries(
        st.sampled_from(["start", "open store", "encode prompts", "load model", "sample", "decode", "write"]),
        st.floats(0, 1e5),
    ),
    st.floats(0, 1e3),
)
def test_the_parts_of_the_time_are_the_time(stages: dict[str, float], after: float) -> None:
    total = sum(stages.values()) + after
    parts = [float(number) for number in re.findall(r"[\d.]+", spent(stages, total))]
    assert parts[0] == pytest.approx(total, abs=0.06)
    assert sum(parts[1:]) == pytest.approx(parts[0], abs=1e-6)
