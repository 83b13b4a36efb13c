"""Weights of one part: what the headers of their safetensors files say, and the tensors themselves."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.configurations import Configuration, NetworkConfiguration, Shape
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.tensor_info import DTYPES, TensorInfo, Weights

MOST_HEADER_BYTES = 2**23
MOST_BYTES = 2**37
"""Of all files of one part, as 32 bits a number: what FLUX.2 has, the largest of the open models."""
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.safetensors")


class Shards(Configuration):
    """The index of weights in several files."""

    NOTES: ClassVar[frozenset[str]] = frozenset({"metadata"})

    weight_map: Annotated[dict[str, str], Field(min_length=1, max_length=20_000)]


def weight_files(files: ModelFiles, part: str, stem: str) -> list[str]:
    """Names of the safetensors files of one part: a single one, or the shards of an index. Raises ModelError."""
    index = f"{part}/{stem}.safetensors.index.json"
    if index not in files:
        return [f"{part}/{stem}.safetensors"]
    names = set(Shards.read(files, index).weight_map.values())
    if not all(_FILE.fullmatch(name) for name in names):
        raise files.error(f"has an index of weights outside of it ({index})")
    return sorted(f"{part}/{name}" for name in names)


def read_headers(files: ModelFiles, part: str, stem: str, configuration: NetworkConfiguration) -> Weights:
    """What a part's files hold, compared with its configuration. Reads no tensors. Raises ModelError."""
    weights: Weights = {}
    total = 0
    for name_in_file, info in _stored_tensors(files, part, stem):
        name = configuration.canonical_name(name_in_file)
        if name in weights:
            raise files.error(f"has weights that are there twice ({info.file}: {info.name!r:.100})")
        weights[name] = info
        total += math.prod(info.shape) * (8 if info.dtype == "F64" else 4)
    if total > MOST_BYTES:
        raise files.error(f"has weights of {total} bytes in its {part}, more than {MOST_BYTES}")
    if len(weights) < configuration.least_tensors:
        raise files.error(
            f"lacks weights for layers of {part}/config.json ({len(weights)} tensors, fewer than its layers have)"
        )
    check_shapes(files, part, weights, configuration.edges())
    return weights


def check_shapes(files: ModelFiles, part: str, weights: Weights, expected: Mapping[str, Shape]) -> None:
    """Raise ModelError for the first tensor that is missing or has another shape than its configuration says."""
    missing = [name for name in expected if name not in weights]
    if missing:
        raise files.error(f"has incomplete weights ({part} lacks {missing[0]} and {len(missing) - 1} more)")
    for name, shape in expected.items():
        if weights[name].dtype not in DTYPES:
            raise files.error(f"has weights of an unknown type ({part}: {name} is {weights[name].dtype:.20})")
        if weights[name].shape != shape:
            raise files.error(
                f"has weights of other sizes than {part}/config.json says "
                f"({name} is {list(weights[name].shape)}, not {list(shape)})"
            )


def read_tensors(
    files: ModelFiles, weights: Weights, dtypes: Mapping[str, torch.dtype], device: str
) -> dict[str, Tensor]:
    """The tensors that `dtypes` names, copied out of their files to a device, as these types. Raises ModelError."""
    tensors: dict[str, Tensor] = {}
    for file in sorted({weights[name].file for name in dtypes}):
        with files.open_unchanged(file) as descriptor, safe_open(path_of(descriptor), framework="pt") as stream:
            for name, dtype in dtypes.items():
                if weights[name].file == file:
                    tensors[name] = read_tensor(stream, weights[name], device, dtype)
    return tensors


def read_tensor(stream: Any, info: TensorInfo, device: str, dtype: torch.dtype) -> Tensor:
    """One tensor, copied out of an open safetensors file to a device, in the order that a network has."""
    if info.order == "unit matrix":
        return torch.eye(*info.shape, device=device, dtype=dtype)
    if info.rows is None:
        tensor: Tensor = stream.get_tensor(info.name)
    else:
        tensor = stream.get_slice(info.name)[slice(*info.rows)]
    if info.scale is not None:
        tensor = tensor.float() * stream.get_tensor(info.scale).float()
    # A copy, because the file may be mapped into memory and change there.
    tensor = tensor.to(device, dtype, copy=True)
    if info.order == "transposed":
        tensor = tensor.T
    elif info.order == "halves swapped":
        tensor = torch.cat(tensor.chunk(2)[::-1])
    return tensor.reshape(info.shape).contiguous()


def _stored_tensors(files: ModelFiles, part: str, stem: str) -> list[tuple[str, TensorInfo]]:
    """The tensors of one part, each with its name in the file, or in the folder that a single file stands for."""
    if part in files.parts:
        return list(files.parts[part].items())
    names = weight_files(files, part, stem)
    missing = [name for name in names if name not in files]
    if missing:
        raise files.error(f"has no weights for its {part} ({missing[0]} is missing)")
    return [(info.name, info) for name in names for info in read_header(files, name)[0]]


def read_header(files: ModelFiles, file: str) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors that one file holds, and its metadata. Reads no tensors. Raises ModelError."""
    try:
        with files.open_unchanged(file) as descriptor:
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            if length > MOST_HEADER_BYTES:
                raise ValueError(f"a header of more than {MOST_HEADER_BYTES} bytes")  # noqa: TRY301 - told below
            # Reads the header, and compares it with the file's size.
            with safe_open(path_of(descriptor), framework="pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in list(tensors.keys())}
                stored_tensors = [
                    TensorInfo(file, name, tuple(tensor_slice.get_shape()), str(tensor_slice.get_dtype()))
                    for name, tensor_slice in slices.items()
                ]
                return stored_tensors, tensors.metadata() or {}
    except ModelError:
        raise
    except Exception as error:
        raise files.error(f"has damaged weights ({file}: {' '.join(str(error).split())[:120]})") from error


def path_of(descriptor: int) -> str:
    """A path to an open file: safetensors opens files by their path, and this one cannot lead to another file."""
    return f"/dev/fd/{descriptor}"
