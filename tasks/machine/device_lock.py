"""One process at a time has models on a device, where `REGIONAL_DEVICE_LOCK` says so.

The lock is a Unix socket at an abstract address, which one process of a machine can have and which the kernel takes
back when that ends, however it ends. Others ask for the device by connecting, and hear from the kernel when it is free;
so the process that has it can see whether it is wanted. Containers have such addresses of their own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import in_flow_run

logger = plain_logger(__name__)

_ADDRESS = "\0regional-device-"
_BACKLOG = 64
_PAUSE_SECONDS = 1.0
_CREDENTIALS = struct.Struct("3i")


class DeviceLock:
    """The lock of this process. What it has, it has until it ends: its models stay on the device."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @property
    def socket(self) -> socket.socket | None:
        """Readable when another process waits for the device; None: this one does not have it."""
        return self._socket

    async def take(self, name: str) -> None:
        """Wait until no other process of this machine has a lock of that name, and have it from then on."""
        is_told = False
        while self._socket is None:
            self._socket = _listener(name)
            if self._socket is None:
                is_told = await _other_ended(name, is_told=is_told)


device_lock = DeviceLock()


async def take_device() -> None:
    """Wait until this process alone has models on its device, if its settings ask for that. Raises BadInput."""
    name = _lock_name()
    if name is not None:
        await device_lock.take(name)


def _lock_name() -> str | None:
    """The name of the lock that this process needs; None: none. It may touch the GPU."""
    name = settings().device_lock
    if name == "none":
        return None
    if sys.platform != "linux":
        raise BadInput("REGIONAL_DEVICE_LOCK", name, "none: other systems than Linux have no such locks")
    if name != "auto":
        return name
    device = settings().torch_device()
    if not device.startswith("cuda"):
        return None
    import torch

    # It is the same in all processes, whatever number the environment gives to it.
    return str(torch.cuda.get_device_properties(torch.device(device)).uuid)


def _listener(name: str) -> socket.socket | None:
    """The socket that is the lock; None where another process has it."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_ADDRESS + name)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        return None
    return listener


async def _other_ended(name: str, *, is_told: bool) -> bool:
    """Ask the process that has a lock, and wait until it ends; returns whether a log tells that this one waits."""
    try:
        reader, writer = await asyncio.open_unix_connection(_ADDRESS + name)
    except OSError:  # it has just ended, or is about to listen, or too many wait
        await asyncio.sleep(_PAUSE_SECONDS)
        return is_told
    if not is_told:
        own_end = writer.get_extra_info("socket")
        pid, _, _ = _CREDENTIALS.unpack(own_end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        _tell(f"waits for the device ({name}): process {pid} has models on it")
    try:
        with suppress(ConnectionError):
            await reader.read()
    finally:
        writer.close()
    return True


def _tell(line: str) -> None:
    if in_flow_run():
        from prefect.logging import get_run_logger

        get_run_logger().info("%s", line)
    else:
        logger.info("%s", line)
