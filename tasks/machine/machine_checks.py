"""Checks that a machine has the hardware and software that its settings need, before anything is loaded."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from functools import lru_cache

import torch

from prefect_regional_diffusion.sampling_core.errors import BadInput


@lru_cache(maxsize=8)
def check_device(device: str) -> None:
    """Raise BadInput for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(
            "REGIONAL_DEVICE", device, f"auto, cpu, or a device of this machine ({_reason(error)})"
        ) from error


def check_offload(offload: str, device: str, compiled: str) -> None:
    """Raise BadInput for offloading on the device cpu, and for sequential offloading of compiled networks."""
    if device == "cpu":
        raise BadInput("REGIONAL_OFFLOAD", offload, "none on the device cpu, which has no other memory")
    if offload == "sequential" and compiled != "off":
        allowed = f"none or model with REGIONAL_COMPILE={compiled}: layers that come and go are not compiled"
        raise BadInput("REGIONAL_OFFLOAD", offload, allowed)


def check_compile(mode: str, device: str) -> None:
    """Raise BadInput where torch finds nothing to compile with."""
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            raise BadInput("REGIONAL_COMPILE", mode, "off on a machine without the package triton")
    elif not any(map(shutil.which, _compilers())):
        raise BadInput("REGIONAL_COMPILE", mode, "off on a machine without a C++ compiler")


def _compilers() -> list[str]:
    python_compiler = str(sysconfig.get_config_var("CXX") or "").split()
    return [*python_compiler[:1], "g++", "clang++"]


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:120]
