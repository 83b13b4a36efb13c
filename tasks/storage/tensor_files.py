"""Named tensors as bytes (safetensors with a digest) and back, checked against the specs of those that are expected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.specs import Specs, check_specs
from prefect_regional_diffusion.tasks.storage.unfit import UnfitError

_DIGEST = "sha256"

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "I32": torch.int32},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
"""Those that are ever written, by what safetensors calls them."""

_HEADER_BYTES, _BYTES_OF_AN_ENTRY = 512, 256
"""More than a header ever needs: for its length, digest and padding, and for each tensor beside its name."""


def most_bytes(specs: Specs) -> int:
    """Bytes of the largest file with such tensors."""
    entries = sum(2 * len(name) + _BYTES_OF_AN_ENTRY + spec.most_bytes for name, spec in specs.items())
    return _HEADER_BYTES + entries


def encoded(tensors: Mapping[str, Tensor]) -> bytes:
    """The file of some tensors, at least one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(tensors, metadata={_DIGEST: _digest(tensors)})


def decoded(data: bytes, specs: Specs) -> dict[str, Tensor]:
    """The tensors of a file, which must be those that the specs name, and finite.

    Raises UnfitError for everything else: the header is checked before any data is loaded.
    """
    digest = _checked_header(data, specs)
    try:
        tensors = load(data)
        # The header was read by another reader than this one.
        check_specs(tensors, specs)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise UnfitError("it is damaged") from error
    if digest != _digest(tensors):
        raise UnfitError("it does not have the content it was written with")
    # No picture is made of values that are not finite: whoever has reached them draws them again, in vain or not.
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UnfitError("it has values that are not finite")
    return tensors


def _checked_header(data: bytes, specs: Specs) -> str:
    """The digest that a file's header names; its tensors are those of the specs."""
    try:
        # Plain JSON behind an 8-byte length.
        header: Any = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise UnfitError("it is damaged") from error
    match header:
        case {"__metadata__": {"sha256": str(digest)}}:
            entries: dict[str, Any] = {name: entry for name, entry in header.items() if name != "__metadata__"}
        case _:
            raise UnfitError("it has no digest")
    if entries.keys() != specs.keys():
        raise UnfitError("it has other tensors than it should")
    for name, spec in specs.items():
        match entries[name]:
            case {"dtype": str(kind), "shape": [*shape]} if all(type(size) is int for size in shape):
                dtype = _TYPES.get(kind)
            case _:
                raise UnfitError("it is damaged")
        if dtype is None or not spec.fits(dtype, shape):
            raise UnfitError(f"its {name} is not of the type or shape that it should be")
    return digest


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: what the file's own structure checks do not cover."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
