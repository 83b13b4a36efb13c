"""Variants of single files, brought to one form: prefixes, and weights that were divided to fit into 8 bits."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.single_file import flux_dit, ldm_vae, mmdit
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo, Weights
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

_NETWORK = mmdit.PREFIX
_BARE = (flux_dit.BLOCKS, mmdit.BLOCKS)
"""Blocks of networks that are also written without a prefix."""
_OTHER_PARTS = ("text_encoders.", "vae.", ldm_vae.PREFIX)
_QUANTISED = (".absmax", ".quant_map", ".comfy_quant", ".weight_scale", ".weight_scale_2", ".qweight")
_SCALE, _MARKS = ".scale_weight", ("scaled_fp8", ".scale_input")
"""As ComfyUI writes weights of 8 bits: what each was divided by, that some were, and what inputs may be divided by."""


def uniform(infos: Iterable[TensorInfo], files: ModelFiles) -> Tensors:
    """Tensors by the names that the layouts know. Raises ModelError for scales that are not one number for a tensor."""
    infos = list(infos)
    for info in infos:
        if info.name.endswith(_QUANTISED):
            raise files.error(f"has weights in a format of few bits that is not read here ({plain_value(info.name)})")
    return _with_prefixes(_with_scales({info.name: info for info in infos}, files))


def _with_prefixes(tensors: Tensors) -> Tensors:
    """A network of a file without prefixes below the usual one, and FLUX's autoencoder below that of the others."""
    is_bare = any(name.startswith(_BARE) for name in tensors)
    weights: Weights = {}
    for name, info in tensors.items():
        if is_bare and not name.startswith((_NETWORK, *_OTHER_PARTS)):
            name = _NETWORK + name
        elif name.startswith("vae."):
            name = ldm_vae.PREFIX + name.removeprefix("vae.")
        weights[name] = info
    return weights


def _with_scales(tensors: Tensors, files: ModelFiles) -> Tensors:
    weights: Weights = {name: info for name, info in tensors.items() if not name.endswith((_SCALE, *_MARKS))}
    for name, scale in tensors.items():
        if not name.endswith(_SCALE):
            continue
        weight = name.removesuffix(_SCALE) + ".weight"
        if scale.shape not in ((), (1,)) or scale.dtype not in ("F32", "F16", "BF16"):
            raise files.error(f"has a scale that is not one number ({plain_value(name)} is {list(scale.shape)})")
        if weight not in weights:
            raise files.error(f"has a scale of a tensor that is not there ({plain_value(name)})")
        weights[weight] = weights[weight]._replace(scale=name)
    return weights
