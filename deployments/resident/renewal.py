"""What a run may have changed in its process is set back, so that the next one is drawn as by a new process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import psutil
import torch
from torch.backends import cuda, cudnn, mkldnn

from prefect_regional_diffusion.deployments.resident.prefect_internals import (
    QueueService,
    ServiceBase,
    get_global_loop,
)
from prefect_regional_diffusion.tasks.machine.model_catalog import forget_catalog
from prefect_regional_diffusion.tasks.machine.store_settings import forget_store_block
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.storage.fetched_models import forget_fetched

_MOST_GROWTH = 2 << 30
"""Bytes beyond what a process had after its first run, and what it has loaded: more is taken for a leak."""


class _Switch(NamedTuple):
    """A piece of torch's state of a whole process."""

    get: Callable[[], Any]
    set: Callable[[Any], object]


def _attribute(owner: Any, name: str) -> _Switch:
    return _Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


_SWITCHES = (
    _Switch(torch.is_grad_enabled, torch.set_grad_enabled),
    _Switch(torch.get_default_dtype, torch.set_default_dtype),
    _Switch(torch.get_default_device, torch.set_default_device),
    _Switch(torch.get_num_threads, torch.set_num_threads),
    _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Switch(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _Switch(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Switch(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    _Switch(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    _Switch(cuda.math_sdp_enabled, cuda.enable_math_sdp),
    _Switch(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    *(_attribute(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    *(
        _attribute(cuda.matmul, name)
        for name in ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    ),
    _attribute(mkldnn, "enabled"),
)


class ProcessState:
    """The state of a process before its first run."""

    def __init__(self) -> None:
        self._environment, self._path, self._folder = dict(os.environ), list(sys.path), os.open(".", os.O_RDONLY)
        self._switches = [switch.get() for switch in _SWITCHES]
        self._random = torch.get_rng_state()
        self._warnings = list(warnings.filters)
        self._most_memory = 0

    def restore(self) -> bool:
        """Set it back, and send what the run has left to be sent; returns whether the process may go on."""
        QueueService.drain_all(at_exit=False)
        _forget_ended_services()
        os.environ.clear()
        os.environ.update(self._environment)
        os.fchdir(self._folder)
        sys.path[:] = self._path
        cast("list[object]", warnings.filters)[:] = self._warnings
        for switch, value in zip(_SWITCHES, self._switches, strict=True):
            if switch.get() != value:
                switch.set(value)
        torch.set_rng_state(self._random)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())
        forget_store_block()
        forget_catalog()
        forget_fetched()
        gc.collect()
        _return_free_memory()
        return not self._has_grown()

    def _has_grown(self) -> bool:
        memory = psutil.Process().memory_info().rss
        if not self._most_memory:
            self._most_memory = memory + _MOST_GROWTH
        return memory > self._most_memory + loaded_parts().bytes


def _return_free_memory() -> None:
    """Give the system what the C library keeps for later: what runs have freed lies scattered over its many heaps."""
    # Other C libraries than GNU's have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_ended_services() -> None:
    """Each run has services of its own, which would be told to end once more when the process ends. Until then, what
    they have sent and their connections would stay in memory: 2 MB of a run."""
    of_loop: list[Any] = get_global_loop()._on_shutdown  # pyright: ignore[reportPrivateUsage]
    of_loop[:] = [call for call in of_loop if not _is_of_service(call.fn)]
    of_process: list[Any] = threading._threading_atexits  # pyright: ignore[reportAttributeAccessIssue]
    of_process[:] = [call for call in of_process if not _is_of_service(call.func)]


def _is_of_service(function: object) -> bool:
    return isinstance(getattr(function, "__self__", None), ServiceBase)
