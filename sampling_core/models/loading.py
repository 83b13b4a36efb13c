"""One network with its weights: built by a library from checked values, and filled with tensors that we read.

The libraries read no file of a model. A family says which network is built for a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.configurations import Shape
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.meta_device import without_memory
from prefect_regional_diffusion.sampling_core.models.narrow_weights import looks_at_types, narrow_dtypes, widen_in_use
from prefect_regional_diffusion.sampling_core.models.offloading import note_loaded, stream_layers
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.quiet import quiet
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.weights import check_shapes, read_tensors
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

T = TypeVar("T")


@dataclass(frozen=True)
class NetworkSource:
    """What a network is made of: `weights` are what the files hold, by canonical name, and `canonical_name` gives that
    of each of the network's own names.

    `part` is its folder, and what errors call it; its weight files begin with `stem`. Tensors for which `overflows` is
    true stay float32 where others are float16; those of `buffers` are in no file, and those of `spare` may be in one
    and are ignored. `build` imports the library, and makes the network on the device of its context.
    """

    files: ModelFiles
    part: str
    stem: str
    weights: Weights
    canonical_name: Callable[[str], str]
    overflows: Callable[[str], bool]
    buffers: Callable[[], Mapping[str, Tensor]]
    spare: frozenset[str]
    build: Callable[[], Any]


def check_network(source: NetworkSource) -> None:
    """Raise ModelError unless the files have exactly the tensors of the network. Reads none of them."""
    _as_model_errors(source, lambda: _build_on_meta(source))


def load_network(source: NetworkSource, placement: Placement) -> Any:
    """The network, its tensors compared with those of the files before any of them has memory. Raises ModelError."""
    return _as_model_errors(source, lambda: _build_and_fill(source, placement))


def network_bytes(source: NetworkSource, placement: Placement) -> int:
    """Bytes that the network's weights take in memory, counted from what their files hold."""
    narrow = narrow_dtypes(source.weights, placement, source.overflows)
    return sum(
        prod(info.shape) * (narrow.get(name) or _computing_dtype(source, placement, name)).itemsize
        for name, info in source.weights.items()
        if name not in source.spare
    )


def _computing_dtype(source: NetworkSource, placement: Placement, name: str) -> torch.dtype:
    """The type that a layer computes with."""
    overflows = placement.dtype == torch.float16 and source.overflows(name)
    return torch.float32 if overflows else placement.dtype


def _as_model_errors(source: NetworkSource, work: Callable[[], T]) -> T:
    try:
        with quiet():
            return work()
    except ModelError:
        raise
    except Exception as error:  # whatever the libraries raise: it is the folder that does not load
        reason = " ".join(str(error).split())[:200]
        raise source.files.error(f"has weights that do not load ({source.part}: {reason})") from error


def _build_on_meta(source: NetworkSource) -> tuple[Any, Mapping[str, str], Mapping[str, Shape]]:
    """The network without memory, its tensors' canonical names by its own ones, and their shapes by canonical name."""
    with without_memory():
        network = source.build()
    names = {name: source.canonical_name(name) for name in network.state_dict()}
    shapes = {source.canonical_name(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_shapes(source.files, source.part, source.weights, shapes)
    unknown = [name for name in source.weights if name not in shapes and name not in source.spare]
    if unknown:
        raise source.files.error(
            f"has weights without a place in its {source.part} ({plain_value(unknown[0])} and {len(unknown) - 1} more)"
        )
    return network, names, shapes


def _build_and_fill(source: NetworkSource, placement: Placement) -> Any:
    network, names, shapes = _build_on_meta(source)
    device, looks_at_type = placement.loaded_to, looks_at_types(network)
    narrow = narrow_dtypes(
        source.weights, placement, lambda name: name not in shapes or source.overflows(name) or looks_at_type(name)
    )
    dtypes = {name: narrow.get(name) or _computing_dtype(source, placement, name) for name in shapes}
    tensors = read_tensors(source.files, source.weights, dtypes, device)
    network.load_state_dict({network_name: tensors[name] for network_name, name in names.items()}, assign=True)
    buffers = source.buffers()
    for name, buffer in list(network.named_buffers()):
        value = buffers[source.canonical_name(name)] if buffer.is_meta else buffer
        owner, _, buffer_name = name.rpartition(".")
        setattr(network.get_submodule(owner), buffer_name, value.to(device))
    network.eval()
    widen_in_use(network, [network_name for network_name, name in names.items() if name in narrow], placement.dtype)
    note_loaded(network)
    if placement.offload == "sequential":
        stream_layers(network, placement.device)
    return network
