"""Which kernel of torch's attention the networks of this process use."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from prefect_regional_diffusion.sampling_core.errors import BadInput

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""By what the setting calls them."""


@lru_cache(maxsize=8)
def check_attention(kernel: str, device: str) -> None:
    """Raise BadInput for a kernel that the device does not have."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    query = torch.zeros(1, 1, 8, 64, device=device, dtype=dtype)
    try:
        with sdpa_kernel(KERNELS[kernel]):
            scaled_dot_product_attention(query, query, query)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        allowed = f"auto, or a kernel that the device {device} has ({reason})"
        raise BadInput("REGIONAL_ATTENTION", kernel, allowed) from error


def use_attention(kernel: str) -> None:
    """From now on, torch's attention in this process takes this kernel where it can, and `math` elsewhere."""
    cuda = torch.backends.cuda
    cuda.enable_math_sdp(enabled=True)
    cuda.enable_flash_sdp(enabled=kernel == "flash")
    cuda.enable_mem_efficient_sdp(enabled=kernel == "efficient")
    cuda.enable_cudnn_sdp(enabled=kernel == "cudnn")
