"""Locks of devices: who has one, who waits, and who gets it when a process is killed. Real processes, on a CPU."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
import sys
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine import device_lock as locks
from prefect_regional_diffusion.tasks.machine.device_lock import DeviceLock, take_device
from prefect_regional_diffusion.tasks.machine.settings import settings

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such locks"), pytest.mark.timeout(120)]

HOLDER = """
import asyncio, sys, time
from prefect_regional_diffusion.tasks.machine.device_lock import take_device
asyncio.run(take_device())
print("has it", flush=True)
time.sleep(100)
"""


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a lock that this process' settings ask for."""
    name = f"test-{uuid4().hex}"
    monkeypatch.setenv("REGIONAL_DEVICE_LOCK", name)
    settings.cache_clear()
    return name


@pytest.mark.usefixtures("name")
def test_a_lock_is_free_when_the_process_that_has_it_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "device_lock", DeviceLock())
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"

        async def wait() -> None:
            waiting = asyncio.create_task(take_device())
            _, pending = await asyncio.wait([waiting], timeout=1)
            assert pending, "two processes have it"
            holder.send_signal(signal.SIGKILL)
            await waiting

        with caplog.at_level("INFO"):
            asyncio.run(wait())
    assert f"process {holder.pid} has models on it" in caplog.text
    own = locks.device_lock.socket
    assert own is not None
    own.close()


def test_it_is_told_to_who_has_it_that_another_one_waits(name: str) -> None:
    first, second = DeviceLock(), DeviceLock()

    async def meet() -> None:
        await first.take(name)
        own = first.socket
        assert own is not None
        own.settimeout(0)
        with pytest.raises(BlockingIOError):
            own.accept()
        waiting = asyncio.create_task(second.take(name))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        # It may be looked at again and again: nothing is taken from it.
        for _ in range(2):
            assert await asyncio.to_thread(_is_readable, own.fileno())
        own.close()
        await asyncio.wait_for(waiting, 30)

    asyncio.run(meet())
    assert second.socket is not None
    second.socket.close()


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], (), (), 10)[0])


def test_who_has_it_asks_no_more(name: str) -> None:
    lock = DeviceLock()

    async def twice() -> None:
        await lock.take(name)
        await asyncio.wait_for(lock.take(name), 5)

    asyncio.run(twice())
    assert lock.socket is not None
    lock.socket.close()


@pytest.mark.parametrize("chosen", ["none", "auto"])
def test_a_cpu_is_shared_unless_a_name_is_given(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("REGIONAL_DEVICE_LOCK", chosen)
    monkeypatch.setenv("REGIONAL_DEVICE", "cpu")
    settings.cache_clear()
    asyncio.run(take_device())
    assert locks.device_lock.socket is None


def test_a_gpu_is_known_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under whatever number this process sees it."""
    uuid = str(uuid4())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(locks, "device_lock", DeviceLock())
    for device in ("cuda:0", "cuda:3"):
        monkeypatch.setenv("REGIONAL_DEVICE", device)
        monkeypatch.setenv("REGIONAL_DEVICE_LOCK", "auto")
        settings.cache_clear()
        asyncio.run(take_device())
    own = locks.device_lock.socket
    assert own is not None
    assert own.getsockname() == f"\0regional-device-{uuid}".encode()
    own.close()


def test_a_name_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_DEVICE_LOCK", "a b")
    settings.cache_clear()
    with pytest.raises(BadInput, match=r"^REGIONAL_DEVICE_LOCK: 'a b' is not allowed"):
        asyncio.run(take_device())
