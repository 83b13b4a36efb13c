"""`make up` and `make down` know their own processes, whatever the clock says, and stop the server last."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, temporary_settings

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments import server
from prefect_regional_diffusion.deployments.local_stack import LocalStack
from prefect_regional_diffusion.deployments.up import SERVER, down
from prefect_regional_diffusion.flows.server.local import make_auth_string

SLEEPING = [sys.executable, "-c", "import time; time.sleep(600)"]

TELLING = """
import os, signal, subprocess, sys, time
name, log, *inner = sys.argv[1:]

def tell(what):
    with open(log, "a") as file:
        file.write(what + "\\n")

def end(*_):
    tell("end " + name)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
if inner:
    subprocess.Popen([sys.executable, "-c", inner[1], inner[0], log], start_new_session=True)
tell("begin " + name)
while True:
    time.sleep(60)
"""
"""Says when it began and when it was told to end; with two more arguments it has a child that does so too."""


@pytest.fixture
def clock_set(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Put the system's clock forward or back, as far as processes can tell: they count from the time of the boot."""

    def put(seconds: float) -> None:
        boot = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + seconds)

    return put


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="another system, which knows no ticks")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # so that it outlives us
@pytest.mark.parametrize("step", [3600.0, -3600.0, 1.0])
def test_a_clock_that_is_set_makes_nobody_a_stranger(
    step: float, tmp_path: Path, clock_set: Callable[[float], None]
) -> None:
    assert processes.start(tmp_path, "server", SLEEPING, os.environ, tmp_path, port=4310)
    known = processes.running(tmp_path, "server")
    assert known is not None
    try:
        began = known.create_time()
        clock_set(step)
        assert psutil.Process(known.pid).create_time() == pytest.approx(began + step), "the clock was not set"
        assert processes.running(tmp_path, "server") is not None
        assert processes.port_of(tmp_path, "server") == 4310
        assert not processes.start(tmp_path, "server", SLEEPING, os.environ, tmp_path, port=4310)
    finally:
        stopped = processes.stop(tmp_path, "server")
        if not stopped:
            known.kill()
    assert stopped
    assert not known.is_running()


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Makes processes with marks: of this folder and the server, unless told otherwise."""
    made: list[subprocess.Popen[bytes]] = []

    def make(**marks: str) -> subprocess.Popen[bytes]:
        own = {processes.OWNER_TAG: str(tmp_path), processes.PART: "server"} | marks
        telling = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
        made.append(process := subprocess.Popen(telling, env=os.environ | own, stdout=subprocess.PIPE))
        assert process.stdout is not None
        process.stdout.readline()  # it is there, with its environment
        return process

    yield make
    for process in made:
        process.kill()
        process.communicate()


Marked = Callable[..., subprocess.Popen[bytes]]


def write_file(folder: Path, pid: int, **change: object) -> None:
    (folder / "server.json").write_text(json.dumps({"pid": pid, **processes.birth(pid), "port": 4310} | change))


@pytest.mark.parametrize("change", [{"boot": "another"}, {"ticks": 1}, {"boot": None}])
def test_a_stranger_with_the_same_number_is_none_of_ours(
    change: dict[str, object], tmp_path: Path, marked: Marked
) -> None:
    process = marked()
    write_file(tmp_path, process.pid)
    assert processes.running(tmp_path, "server") is not None
    write_file(tmp_path, process.pid, **change)
    assert processes.running(tmp_path, "server") is None


@pytest.mark.parametrize(
    "marks", [{processes.OWNER_TAG: "/elsewhere"}, {processes.PART: "worker-gpu"}, {processes.OWNER_TAG: ""}]
)
def test_a_poisoned_file_ends_nobody(marks: dict[str, str], tmp_path: Path, marked: Marked) -> None:
    """Number, boot and ticks of any process of this user are for everybody to see; our mark is not in it."""
    victim = marked(**marks)
    write_file(tmp_path, victim.pid)
    assert processes.running(tmp_path, "server") is None
    assert processes.port_of(tmp_path, "server") is None
    assert not processes.stop(tmp_path, "server")
    assert victim.poll() is None


def test_only_a_small_plain_file_of_our_own_counts(tmp_path: Path, marked: Marked) -> None:
    process, file = marked(), tmp_path / "server.json"
    write_file(tmp_path, process.pid)
    good = file.read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(good)

    def plant(make: Callable[[], object]) -> None:
        file.unlink()
        make()
        assert processes.running(tmp_path, "server") is None
        assert processes.port_of(tmp_path, "server") is None

    plant(lambda: file.symlink_to(elsewhere))
    plant(lambda: file.hardlink_to(elsewhere))
    plant(lambda: os.mkfifo(file))
    plant(lambda: file.write_text(good + " " * 100_000))
    plant(lambda: file.write_text("[" * 4000))
    plant(lambda: file.write_text("[1]"))
    plant(lambda: file.write_bytes(b"\xff"))
    plant(lambda: file.write_text(good.replace(str(process.pid), f'"{process.pid}"', 1)))
    if os.getuid() == 0:
        plant(lambda: (file.write_text(good), os.chown(file, 65534, 65534)))
    file.unlink()
    file.write_text(good)
    assert processes.running(tmp_path, "server") is not None
    file.write_text(good.replace("4310", '"4310; rm"'))
    assert processes.port_of(tmp_path, "server") is None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_another_users_process_with_our_mark_is_none_of_ours(tmp_path: Path) -> None:
    marks = {processes.OWNER_TAG: str(tmp_path), processes.PART: "server"}
    stranger = subprocess.Popen(["/bin/sleep", "600"], env=marks, user=65534)
    try:
        write_file(tmp_path, stranger.pid)
        assert processes.running(tmp_path, "server") is None
        assert processes.stop_strays(tmp_path) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("name", ["server.log", "server.json"])
def test_what_is_planted_in_the_folder_is_not_written_to(name: str, tmp_path: Path) -> None:
    """A link where a log or a process file will be."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    writing = [sys.executable, "-c", "print('written')"]
    try:
        processes.start(folder, "server", writing, os.environ, tmp_path, port=4310)
    except OSError:
        assert name == "server.log"
    assert victim.read_text() == "as it was"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_what_a_process_writes_is_for_this_user_alone(tmp_path: Path) -> None:
    """Whatever the umask was, and though a log was open to all before."""
    log = tmp_path / "server.log"
    log.write_text("")
    log.chmod(0o666)
    made = tmp_path / "made"
    writing = [sys.executable, "-c", f"open({str(made)!r}, 'w'); import time; time.sleep(600)"]
    before = os.umask(0)
    try:
        assert processes.start(tmp_path, "server", writing, os.environ, tmp_path, port=4310)
    finally:
        os.umask(before)
    deadline = time.monotonic() + 60
    while not made.exists():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (log, made, tmp_path / "server.json")}
    assert processes.stop(tmp_path, "server")
    assert set(modes.values()) == {"0o600"}, modes


def test_where_there_is_no_proc_the_time_of_the_start_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
    assert processes.birth(os.getpid()) == {"created": psutil.Process().create_time()}


def test_a_process_that_takes_up_another_program_is_the_same(
    marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows no environment in that moment."""
    process, shown, moments = marked(), psutil.Process.environ, [dict[str, str](), {}]
    write_file(tmp_path, process.pid)
    monkeypatch.setattr(psutil.Process, "environ", lambda self: moments.pop() if moments else shown(self))
    assert processes.running(tmp_path, SERVER) is not None
    assert not moments


def test_a_name_of_many_words_hides_no_birth(tmp_path: Path) -> None:
    """The name stands in the middle of the line, in parentheses, and may have some itself."""
    odd = tmp_path / "a) S 1 (b"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", odd)
    sleeping = subprocess.Popen([odd, "600"])
    try:
        plain = processes.birth(os.getpid())
        assert processes.birth(sleeping.pid)["ticks"] >= plain["ticks"]
        assert processes.birth(sleeping.pid)["boot"] == plain["boot"]
    finally:
        sleeping.kill()
        sleeping.wait()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("known", ["nobody", "the server", "the worker"])
def test_the_server_is_stopped_last(known: str, tmp_path: Path) -> None:
    """A worker hands its runs back, which takes a server; then runs end that are still there. None is forgotten."""
    machine, log = LocalStack(tmp_path / "up", 4310), tmp_path / "log"
    machine.folder.mkdir()
    telling = [sys.executable, "-c", TELLING]
    start = {
        SERVER: [*telling, "server", str(log)],
        "worker-gpu": [*telling, "worker", str(log), "run", TELLING],
    }
    for part, command in start.items():
        assert processes.start(machine.folder, part, command, os.environ, tmp_path, port=4310)
        if known != ("the server" if part == SERVER else "the worker"):
            (machine.folder / f"{part}.json").unlink()
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("begin") < 3:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "nothing began"
        time.sleep(0.05)
    down(machine)
    assert [line for line in log.read_text().splitlines() if line.startswith("end")] == [
        "end worker",
        "end run",
        "end server",
    ]
    assert list(machine.folder.glob("*.json")) == []


def test_two_that_make_an_auth_string_at_once_have_the_same_and_none_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one put an empty file in the place of the first one's, whose server then asked for nothing."""
    second_is_there, first_is_done = threading.Event(), threading.Event()
    made, others = secrets.token_urlsafe, list[str]()
    second = threading.Thread(target=lambda: others.append(make_auth_string(tmp_path)))

    def slow(size: int) -> str:
        if threading.current_thread() is second:
            second_is_there.set()
            first_is_done.wait(60)
        else:
            second.start()
            # It must not get there, which it shows by not coming.
            second_is_there.wait(1)
        return made(size)

    monkeypatch.setattr(secrets, "token_urlsafe", slow)
    own = make_auth_string(tmp_path)
    first_is_done.set()
    second.join()
    assert others == [own]
    assert len(own) > 32
    assert [file.name for file in tmp_path.iterdir()] == ["auth"]


def test_no_server_starts_with_an_empty_auth_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("it serves"))
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: ""}), pytest.raises(SystemExit, match="missing"):
        server.main()


def test_a_log_is_shown_without_what_steers_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(b"one\x1b[2J\ntwo\x07\n")
    assert processes.log_tail(tmp_path, "x").split() == ["one\\x1b[2J", "two\\x07"]
