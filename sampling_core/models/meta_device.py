"""Networks without memory: their tensors have shapes and types, on torch's meta device, and no values."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

_FILLS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(init.kaiming_uniform_, init.normal_, init.trunc_normal_, init.uniform_),
        *(torch.Tensor.fill_, torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_),
    }
)
"""What gives new weights their first values."""


@contextmanager
def without_memory() -> Generator[None]:
    """Within the block, this thread's new tensors have no memory, and layers draw no first values for them.

    torch would go through the motions of drawing them, which is half the time that a network takes to be built.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor: torch.Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
