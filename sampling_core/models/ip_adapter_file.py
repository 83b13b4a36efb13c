"""An IP-Adapter in a `.safetensors` file: its header compared with a denoiser and an image encoder, and its tensors.

What a file has beside a plain IP-Adapter or a Plus is refused by its name: a picture drawn with half of an adapter
looks as if it were right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from prefect_regional_diffusion.sampling_core.models.clip_vision import CLIPVisionModelWithProjection
from prefect_regional_diffusion.sampling_core.models.configurations import Shape
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.image_encoder import ImageFeatures
from prefect_regional_diffusion.sampling_core.models.ip_adapter_projection import (
    HEAD,
    AdapterKind,
    depth,
    image_tokens,
    layer_shapes,
    plain_shapes,
    plus_shapes,
)
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tensor_info import DTYPES, TensorInfo, Weights
from prefect_regional_diffusion.sampling_core.models.weights import read_header, read_tensors
from prefect_regional_diffusion.sampling_core.tensors.specs import Specs, TensorSpec

MOST_TOKENS = 256
MOST_LAYERS = 64
"""Of a resampler."""
ROLES = ("keys", "values")
_PROJECTIONS = ("image_proj.", "ip_adapter_proj_model.")
"""What the names of the projection's weights begin with: in most files, and in XLabs' for FLUX."""
_PROJECTION = "projection."
"""What they begin with here."""
_ATTENTION = re.compile(
    r"(?:ip_adapter\.(?P<number>\d{1,4})\.to_(?P<role>[kv])_ip"
    r"|double_blocks\.(?P<block>\d{1,4})\.processor\.ip_adapter_double_stream_(?P<of_block>[kv])_proj)"
    r"\.(?P<part>weight|bias)"
)
_OTHERS = (
    ("FaceID Plus", ("image_proj.perceiver_resampler.",)),
    ("FaceID", ("image_proj.proj.0.weight", "image_proj.norm.weight")),
    ("Full Face", ("image_proj.proj.0.weight", "image_proj.proj.3.weight")),
)
"""Kinds of IP-Adapters that are not read, with what the names of their tensors begin with, all of it."""

T = TypeVar("T")


class ImageAttention(NamedTuple):
    """A layer of a denoiser to which IP-Adapters add attention."""

    name: str
    """Of the module."""
    number: int
    """What files call it."""
    width: int
    """Features of a key or a value, of all heads together."""


class AttentionPlan(NamedTuple):
    """Where and how the IP-Adapters of a family of models act on a denoiser."""

    layers: tuple[ImageAttention, ...]
    token_width: int
    """Features of a token that these layers attend to."""
    bias: bool = False
    """Whether keys and values have biases."""
    kinds: tuple[AdapterKind, ...] = ("plain", "plus")


@dataclass(frozen=True)
class IPAdapter:
    """A file whose header suits a denoiser; no tensors.

    It makes `tokens` of a picture, from `features` of an image encoder: of its projection, or of each of its patches.
    """

    files: ModelFiles
    kind: AdapterKind
    plan: AttentionPlan
    weights: Weights
    """By what they do: `projection.NAME`, `LAYER.keys.weight`, `LAYER.values.bias`."""
    tokens: int
    features: int

    def fingerprint(self) -> str:
        """SHA-256 of the file, in hex."""
        return self.files.digest(self.files.files[0].name).hex()

    @property
    def specs(self) -> Specs:
        """What is made of an image: for each layer its `keys` and `values` [1, tokens, width]."""
        return {
            f"{layer.name}.{role}": TensorSpec(torch.float32, (1, self.tokens, layer.width))
            for layer in self.plan.layers
            for role in ROLES
        }

    def check_encoder(self, encoder: CLIPVisionModelWithProjection) -> None:
        """Raise ModelError for an image encoder with another number of features than the adapter reads."""
        quantity = "projected features" if self.kind == "plain" else "features of a patch"
        num_features = encoder.projection_dim if self.kind == "plain" else encoder.hidden_size
        if num_features != self.features:
            raise self.files.error(f"reads {self.features} {quantity}, and its image encoder has {num_features}")

    def load(self, placement: Placement) -> LoadedIPAdapter:
        """Read the weights. Raises ModelError."""
        tensors = read_tensors(self.files, self.weights, dict.fromkeys(self.weights, placement.dtype), placement.device)
        return LoadedIPAdapter(self, tensors)


class LoadedIPAdapter:
    """An adapter with its weights."""

    def __init__(self, adapter: IPAdapter, tensors: Mapping[str, Tensor]) -> None:
        self._adapter, self._tensors = adapter, tensors

    @torch.inference_mode()
    def keys_and_values(self, image: ImageFeatures) -> dict[str, Tensor]:
        """The keys and values of an image that the denoiser attends to, as in `specs`; float32 on the CPU.

        Raises ModelError for numbers that are not finite.
        """
        reference = next(iter(self._tensors.values()))
        features = image.projected if self._adapter.kind == "plain" else image.patches
        projection = _projection_weights(self._tensors)
        tokens = image_tokens(self._adapter.kind, projection, features.to(reference.device, reference.dtype))
        outputs: dict[str, Tensor] = {}
        for name in self._adapter.specs:
            weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
            outputs[name] = functional.linear(tokens, weight, bias).float().cpu().clone()
            if not outputs[name].isfinite().all():
                raise self._adapter.files.error(f"makes numbers of an image that are not finite ({name})")
        return outputs


def open_ip_adapter(files: ModelFiles, plan: AttentionPlan) -> IPAdapter:
    """Compare a file's header with what the IP-Adapters of a model are. Reads no tensors.

    Raises ModelError for what is no IP-Adapter, is one of a kind that is not read, or does not suit the model.
    """
    name = files.files[0].name
    if not name.endswith(".safetensors"):
        raise files.error("is no .safetensors file (pickled weights are never read)")
    header = {info.name: info for info in read_header(files, name)[0]}
    for other, prefixes in _OTHERS:
        if all(any(tensor.startswith(prefix) for tensor in header) for prefix in prefixes):
            raise files.error(f"is an IP-Adapter of a kind that is not read here ({other})")
    weights = _by_role(files, header, plan)
    projection = _projection_weights(weights)
    kind: AdapterKind = "plus" if "latents" in projection else "plain"
    if kind not in plan.kinds:
        raise files.error("is an IP-Adapter Plus, which this model does not take")
    shapes, tokens, features = (_plus_sizes if kind == "plus" else _plain_sizes)(files, plan.token_width, projection)
    expected = {f"{_PROJECTION}{name}": shape for name, shape in shapes.items()}
    for layer in plan.layers:
        for role in ROLES:
            expected[f"{layer.name}.{role}.weight"] = (layer.width, plan.token_width)
            if plan.bias:
                expected[f"{layer.name}.{role}.bias"] = (layer.width,)
    _check_shapes(files, weights, expected)
    return IPAdapter(files, kind, plan, weights, tokens, features)


def _projection_weights(weights: Mapping[str, T]) -> dict[str, T]:
    """Those of the projection, by the names that published files have, without their prefix."""
    return {name.removeprefix(_PROJECTION): weight for name, weight in weights.items() if name.startswith(_PROJECTION)}


def _by_role(files: ModelFiles, header: Mapping[str, TensorInfo], plan: AttentionPlan) -> Weights:
    """The tensors by what they do: `projection.NAME`, or a layer of the denoiser, `keys` or `values`, and the part."""
    layers = {layer.number: layer.name for layer in plan.layers}
    weights: Weights = {}
    numbers: set[int] = set()
    for name, info in header.items():
        prefix = next((prefix for prefix in _PROJECTIONS if name.startswith(prefix)), None)
        attention = _ATTENTION.fullmatch(name)
        if prefix is not None:
            role = f"{_PROJECTION}{name.removeprefix(prefix)}"
        elif attention is not None:
            number = int(attention["number"] or attention["block"])
            numbers.add(number)
            kind = "keys" if (attention["role"] or attention["of_block"]) == "k" else "values"
            role = f"{layers.get(number, number)}.{kind}.{attention['part']}"
        else:
            raise files.error(f"has a tensor that is none of an IP-Adapter's ({name:.120})")
        if role in weights:
            raise files.error(f"has a tensor twice ({name:.120})")
        weights[role] = info
    if not weights:
        raise files.error("has no tensors")
    if numbers != layers.keys():
        raise files.error(
            f"is an IP-Adapter of another model (it acts on {len(numbers)} layers, which are not the "
            f"{len(layers)} of this model)"
        )
    return weights


_Sizes = tuple[dict[str, Shape], int, int]
"""Shapes of the projection's weights, number of tokens, features that it reads."""


def _plain_sizes(files: ModelFiles, token_width: int, weights: Mapping[str, TensorInfo]) -> _Sizes:
    rows, features = _matrix_shape(files, weights, "proj.weight")
    tokens = rows // token_width
    if not 1 <= tokens <= MOST_TOKENS or rows != tokens * token_width:
        raise files.error(
            f"is an IP-Adapter of a model of other sizes (proj.weight has {rows} rows, and this model's tokens have "
            f"{token_width} features)"
        )
    return plain_shapes(token_width, tokens, features), tokens, features


def _plus_sizes(files: ModelFiles, token_width: int, weights: Mapping[str, TensorInfo]) -> _Sizes:
    latents = weights["latents"].shape
    width, features = _matrix_shape(files, weights, "proj_in.weight")
    inner, hidden = (_matrix_shape(files, weights, f"layers.0.{name}.weight")[0] for name in ("0.to_q", "1.1"))
    layers = depth(weights)
    if len(latents) != 3 or not 1 <= latents[1] <= MOST_TOKENS or inner % HEAD or layers > MOST_LAYERS:
        raise files.error(f"is an IP-Adapter Plus of sizes that are not known here (latents {list(latents)})")
    shapes = plus_shapes(token_width, latents[1], features, width)
    for i in range(layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer_shapes(width, inner, hidden).items()}
    return shapes, latents[1], features


def _matrix_shape(files: ModelFiles, weights: Mapping[str, TensorInfo], name: str) -> tuple[int, int]:
    """The shape of a matrix."""
    if name not in weights or len(weights[name].shape) != 2:
        raise files.error(f"is no IP-Adapter as it is known here (its projection has no matrix {name})")
    rows, columns = weights[name].shape
    return rows, columns


def _check_shapes(files: ModelFiles, weights: Mapping[str, TensorInfo], expected: Mapping[str, Shape]) -> None:
    """Raise ModelError unless the tensors are exactly the expected ones, of types that are known."""
    missing = [name for name in expected if name not in weights]
    if missing:
        raise files.error(f"is an incomplete IP-Adapter (it has no {missing[0]}, and {len(missing) - 1} more)")
    for name, info in weights.items():
        if name not in expected:
            raise files.error(f"has a tensor that is none of an IP-Adapter's ({info.name:.120})")
        if info.dtype not in DTYPES:
            raise files.error(f"has tensors of an unknown type ({info.name:.120} is {info.dtype:.20})")
        if info.shape != expected[name]:
            raise files.error(
                f"is an IP-Adapter of a model of other sizes ({info.name:.120} is {list(info.shape)}, not "
                f"{list(expected[name])})"
            )
