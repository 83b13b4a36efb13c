"""The most memory that this process has had, since a moment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_PROC = Path("/proc/self")
_FORGET_PEAK = "5"
"""Written to `clear_refs`: the kernel's peak is what there is now."""


class PeakMemory:
    """Peaks since this object was made; of CUDA devices those of torch's own allocator."""

    def __init__(self) -> None:
        with suppress(OSError):  # no Linux, or not this user's: then it is the process' peak
            (_PROC / "clear_refs").write_text(_FORGET_PEAK)
        for device in _devices():
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> dict[str, int]:
        """Of the process (`host`) and, where a CUDA device was used, of all devices together (`gpu`)."""
        peaks = dict[str, int]()
        with suppress(OSError, IndexError):
            _, _, rest = (_PROC / "status").read_text().partition("VmHWM:")
            peaks["host"] = 1024 * int(rest.split()[0])
        gpu = sum(torch.cuda.max_memory_allocated(device) for device in _devices())
        return peaks | ({"gpu": gpu} if gpu else {})


def _devices() -> range:
    """CUDA devices, if this process has used any: asking would make it use them."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
