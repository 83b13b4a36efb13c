"""A layer whose weight is wide while it is at work. Imports diffusers, which knows of such layers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook
from torch import Tensor


class _Widening(LayerwiseCastingHook):
    """diffusers' own casts a whole layer to one type and back, which rounds a bias that is stored wider.

    This one has the weight itself again after the call: nothing is rounded, and nothing cast back.
    """

    _narrow: Tensor

    def initialize_hook(self, module: Any) -> Any:
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # It is wide if the call before ended in an error.
        if module.weight.dtype == self.storage_dtype:
            self._narrow = module.weight.data
            module.weight.data = self._narrow.to(dtype=self.compute_dtype)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        module.weight.data = self._narrow
        del self._narrow
        return output


def widen_weight(layer: Any, dtype: torch.dtype) -> None:
    """Have a layer compute with its weight as `dtype`. Networks of diffusers then say that they compute with it."""
    registry: Any = HookRegistry.check_if_exists_or_initialize(layer)
    # Under the name by which diffusers asks for it.
    registry.register_hook(_Widening(layer.weight.dtype, dtype, non_blocking=False), "layerwise_casting")
