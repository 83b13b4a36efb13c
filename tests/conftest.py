"""Fixtures of all tests. Shapes of tensors in the core are checked at every call while tests run."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Before torch and Prefect are imported; see flows.common.environment for the reasons.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import tests.typechecking
from tests.made_once import keep_in

if TYPE_CHECKING:
    from tests.machine import Machine
    from tests.on_server import OnServer

CORE = Path(__file__).parents[1] / "sampling_core"


def modules_with_shapes() -> list[str]:
    """Modules of the core whose signatures have tensors with shapes. The other ones are left to the static checker."""
    files = [file for file in sorted(CORE.rglob("*.py")) if "sampling_core.tensors.types import" in file.read_text()]
    names = [file.relative_to(CORE.parent).with_suffix("").parts for file in files]
    return [".".join(["prefect_regional_diffusion", *name]).removesuffix(".__init__") for name in names]


# Before anything imports the core: every annotated call in these modules is then checked, shapes included.
tests.typechecking.install(modules_with_shapes())

# No test turns the power off: to wait for the disk, ten milliseconds for each object, shows nothing.
os.fsync = lambda _: None

# How long an example takes says nothing about the code: machines are shared.
settings.register_profile("shared machine", deadline=None, max_examples=60)
settings.load_profile("shared machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What imports make stays to the end: no collection looks at it, and tests of memory collect often."""
    gc.disable()  # while modules are imported, that is a fifth of the time
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run in one process, where it is made once.

    Groups that may take long come first, or the last process would be at one when all others are done; `make test-e2e`
    keeps that order.
    """
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("xdist_group") is None and _shares(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    seconds = Counter[str]()
    for item in items:
        seconds[_group(item)] += _timeout(item)
    items.sort(key=lambda item: -seconds[_group(item)])


def _group(item: pytest.Item) -> str:
    group = item.get_closest_marker("xdist_group")
    return item.nodeid if group is None else group.args[0]


def _timeout(item: pytest.Item) -> int:
    timeout = item.get_closest_marker("timeout")
    return 0 if timeout is None else timeout.args[0]


def _shares(test: pytest.Function) -> bool:
    found = test._fixtureinfo.name2fixturedefs.values()  # pyright: ignore[reportPrivateUsage]
    return any(fixture.scope == "module" for fixtures in found for fixture in fixtures)


@pytest.fixture(scope="session", autouse=True)
def made_once_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `tests/made_once.py` makes is shared by the processes of a run."""
    ours = tmp_path_factory.getbasetemp()
    keep_in((ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "made-once")


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """Each test reads its settings anew, and leaves no environment variables behind; it has encoded no prompt."""
    from prefect_regional_diffusion.tasks.machine.settings import settings
    from prefect_regional_diffusion.tasks.runtime.encoded_prompts import encoded_prompts

    before = dict(os.environ)
    settings.cache_clear()
    encoded_prompts.cache_clear()
    yield
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


@pytest.fixture(autouse=True)
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test calls in this process must not take its signals."""
    monkeypatch.setattr("prefect_regional_diffusion.flows.cli.stopping.listen", lambda: None)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that default folders land in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Prefect server without workers, one for all tests that need no more."""
    from tests.processes import prefect_server

    # Its pages ask the server that they come from, whatever its port is.
    with prefect_server(tmp_path_factory.mktemp("server"), PREFECT_UI_API_URL="/api") as api:
        yield api


@pytest.fixture
def on_server(server: str) -> OnServer:
    """Does work with a client of the running server, and a deployment and a pool of its own."""
    from tests.on_server import on_server_at

    return on_server_at(server)


@pytest.fixture(scope="session")
def shared_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """`make up`, once for all tests on a whole machine; ask for `machine`."""
    from tests.machine import KEYS, Machine

    folder = tmp_path_factory.mktemp("machine")
    # As far as pytest is concerned, others may enter: what keeps them out must be the folder of `make up`.
    for above in (folder, *folder.parents[:2]):
        above.chmod(0o755)
    (folder / "up").mkdir()
    (folder / "up").chmod(0o777)  # from before
    machine = Machine(folder, REGIONAL_STORE=str(folder / "store"), REGIONAL_OUT=str(folder / "out"), **KEYS)
    try:
        machine.up()
        yield machine
    finally:
        machine.up("--down")


@pytest.fixture
def machine(shared_machine: Machine) -> Machine:
    """The shared machine, up, whatever an earlier test has stopped; tests that ask for it have the group `machine`."""
    shared_machine.ensure_up()
    return shared_machine


@pytest.fixture
def env(tmp_path: Path, server: str) -> dict[str, str]:
    """Processes with this environment talk to the running server."""
    from tests.processes import environment

    home = tmp_path / "prefect"
    home.mkdir()
    return environment(home, server)
