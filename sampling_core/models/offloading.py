"""Networks that are on their device only while they are used, and in the host's memory else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from prefect_regional_diffusion.sampling_core.models.compiling import uncompiled

_streamed_to: WeakKeyDictionary[Any, torch.device] = WeakKeyDictionary()
_networks: ContextVar[list[Any] | None] = ContextVar("networks", default=None)


@contextmanager
def networks_loaded() -> Generator[list[Any]]:
    """A list that has, when the block has ended, the networks that this thread loaded within it."""
    networks: list[Any] = []
    token = _networks.set(networks)
    try:
        yield networks
    finally:
        _networks.reset(token)


def note_loaded(network: Any) -> None:
    """Add a network to the list of the `networks_loaded` block around this call, if there is one."""
    networks = _networks.get()
    if networks is not None:
        networks.append(network)


def stream_layers(network: Any, device: str) -> None:
    """Have each layer of a network in the host's memory come to the device for its own call, and leave it after it."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    streams = torch.device(device).type == "cuda"
    apply_group_offloading(network, torch.device(device), offload_type="leaf_level", use_stream=streams)
    _streamed_to[network] = torch.device(device)


def computing_device(network: Any) -> torch.device:
    """Where a network's inputs belong. Its own `device` says the same, after walking over all layers."""
    network = uncompiled(network)
    return _streamed_to.get(network) or next(network.parameters()).device


class OffloadedNetworks:
    """Networks that are on a device while a thread is in an `on_device` block, and in the host's memory else."""

    def __init__(self, networks: Sequence[Any], device: str) -> None:
        self._networks, self._device = networks, device
        self._users, self._lock = 0, Lock()

    @contextmanager
    def on_device(self) -> Generator[None]:
        """Within the block, the networks are on the device."""
        with self._lock:
            if self._users == 0:
                self._move(self._device)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._move("cpu")

    def _move(self, device: str) -> None:
        for network in self._networks:
            network.to(device)
