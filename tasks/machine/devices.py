"""Which devices drew which steps of a run. Bits are equal on equal hardware; a run may go on elsewhere, and says so."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec
from prefect_regional_diffusion.tasks.machine.settings import settings

UNKNOWN = "an unknown device"


class DeviceSteps(BaseModel):
    """Steps (counted from 1, both included) that one device drew."""

    model_config = ConfigDict(frozen=True)
    first: int = Field(ge=1)
    last: int = Field(ge=1)
    device: str = Field(max_length=200)


Devices = tuple[DeviceSteps, ...]
_DEVICES: TypeAdapter[Devices] = TypeAdapter(Devices)


DEVICES_SPEC = TensorSpec(torch.uint8, (range(2, 2**20),))
"""Of `to_tensor`: a run that changed its device at each of a thousand steps would still fit."""


def device_name() -> str:
    """The device of this process that samples: `cpu AVX512 (AMD EPYC)`, or the name of a GPU."""
    device = settings().torch_device()
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    if device != "cpu":
        return device
    return f"cpu {torch.backends.cpu.get_cpu_capability()} ({_processor()})"


@lru_cache(maxsize=1)
def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def with_step(devices: Devices, step: int, device: str) -> Devices:
    """The devices once a device has drawn one more step."""
    if devices and devices[-1].device == device:
        return (*devices[:-1], devices[-1].model_copy(update={"last": step}))
    return (*devices, DeviceSteps(first=step, last=step, device=device))


def to_tensor(devices: Devices) -> Tensor:
    """As bytes of JSON [n], uint8: what a state carries with it in the store."""
    return torch.tensor(list(_DEVICES.dump_json(devices)), dtype=torch.uint8)


def from_tensor(tensor: Tensor, steps: int) -> Devices:
    """What `to_tensor` wrote for a state after so many steps; an unknown device for anything else."""
    try:
        devices = _DEVICES.validate_json(bytes(tensor.tolist()))
    except (ValueError, TypeError):
        devices = ()
    return devices if devices and devices[-1].last == steps else (DeviceSteps(first=1, last=steps, device=UNKNOWN),)


def sentence(devices: Iterable[DeviceSteps]) -> str:
    """For people: who drew what."""
    return "; ".join(f"steps {part.first} to {part.last} on {part.device}" for part in devices)
