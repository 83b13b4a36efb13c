"""A LoRA in a `.safetensors` file: its header compared with a model, and its tensors.

kohya's names and those of diffusers and PEFT are known. What a file has that is no plain LoRA, or not of the model, is
refused, and never left out: a picture drawn with half of a LoRA looks as if it were right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors import safe_open

from prefect_regional_diffusion.sampling_core.models.configurations import Shape
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.lora_names import LayerRows, layer_names
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, LowRank
from prefect_regional_diffusion.sampling_core.models.tensor_info import DTYPES, TensorInfo, Weights
from prefect_regional_diffusion.sampling_core.models.weights import path_of, read_header, read_tensor

LoraPart = Literal["denoiser", "text_encoder"]
LORA_PARTS: tuple[LoraPart, ...] = get_args(LoraPart)

MOST_RANK = 4096
_ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
"""How the names of a LoRA's tensors end: kohya's, PEFT's, and those of older releases of diffusers."""
_OTHERS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a third matrix (Tucker)",
    "oft_": "an OFT",
    "ia3": "an IA3",
}
"""Other ways to change weights, by what only their tensors are called."""
_TABLES = frozenset({"embeddings", "shared", "embed_tokens", "relative_attention_bias"})
"""Parts of the names of tables that text encoders look tokens, places or distances up in."""


class LoraLayer(NamedTuple):
    """The tensors of one layer. What is added is `up @ down * alpha / rank`; without alpha, `up @ down`.

    Layers that are one matrix in the file have the same `down`, and each its rows of `up`.
    """

    base: Shape
    down: TensorInfo
    up: TensorInfo
    alpha: TensorInfo | float | None


@dataclass(frozen=True)
class Lora:
    """A file whose header suits a model: the layers of each of its networks, by name; no tensors."""

    files: ModelFiles
    denoiser: tuple[Mapping[str, LoraLayer], ...]
    text_encoder: tuple[Mapping[str, LoraLayer], ...]

    def fingerprint(self) -> str:
        """SHA-256 of the file, in hex."""
        return self.files.digest(self._file).hex()

    def layers(self, part: LoraPart) -> int:
        """On how many layers of a part it acts."""
        return sum(len(network) for network in getattr(self, part))

    @property
    def numbers(self) -> int:
        """Numbers in all of its weights."""
        return sum(map(self._numbers, LORA_PARTS))

    def part_bytes(self, part: LoraPart) -> int:
        """Bytes of what `read` gives."""
        return self._numbers(part) * torch.float32.itemsize

    def _numbers(self, part: LoraPart) -> int:
        networks: tuple[Mapping[str, LoraLayer], ...] = getattr(self, part)
        return sum(math.prod(one.shape) for network in networks for layer in network.values() for one in layer[1:3])

    def read(self, part: LoraPart) -> tuple[LoraLayers, ...]:
        """The tensors of a part, float32 on the CPU, for each of its networks. Raises ModelError."""
        with (
            self.files.open_unchanged(self._file) as descriptor,
            safe_open(path_of(descriptor), framework="pt") as stream,
        ):
            return tuple(
                {name: self._read(stream, layer) for name, layer in network.items()} for network in getattr(self, part)
            )

    def _read(self, stream: Any, layer: LoraLayer) -> LowRank:
        def tensor(info: TensorInfo) -> torch.Tensor:
            return read_tensor(stream, info, "cpu", torch.float32)

        rank = layer.down.shape[0]
        alpha = float(tensor(layer.alpha)) if isinstance(layer.alpha, TensorInfo) else layer.alpha
        down = tensor(layer.down).reshape(rank, *layer.base[1:])
        up = tensor(layer.up).reshape(layer.base[0], rank, *[1] * (len(layer.base) - 2))
        if alpha is not None:
            up *= alpha / rank
        if not (down.isfinite().all() and up.isfinite().all()):
            raise self.files.error(f"has numbers that are not finite ({layer.down.name:.120})")
        return LowRank(down, up)

    @property
    def _file(self) -> str:
        return self.files.files[0].name


def open_lora(
    files: ModelFiles,
    denoiser: Mapping[str, Weights],
    text_encoder: Mapping[str, Weights],
    first_layers: Weights | None = None,
) -> Lora:
    """Compare a file's header with the weights of a model's networks, by diffusers' names of them.

    `first_layers` are what the denoiser's weights are in a file of its first release, as `layer_names` takes them.

    Raises ModelError for what is no LoRA, is another kind of adapter, or does not suit the model.
    """
    name = files.files[0].name
    if not name.endswith(".safetensors"):
        raise files.error("is no .safetensors file (pickled weights are never read)")
    header, metadata = read_header(files, name)
    tensors = _tensors_by_layer(files, header)
    alphas = _alphas(files, metadata)
    networks = {**denoiser, **text_encoder}
    shapes = {folder: _matrix_shapes(weights) for folder, weights in networks.items()}
    layers_by_name = {
        name: (folder, rows)
        for folder, layers in shapes.items()
        for name, rows in layer_names(folder, layers, first_layers or {}).items()
    }
    unknown = [name for name in tensors if name not in layers_by_name]
    if unknown:
        raise files.error(
            f"is a LoRA of another model ({len(unknown)} of its {len(tensors)} layers are none of this model's: "
            f"{unknown[0]:.120})"
        )
    lora_layers: dict[str, dict[str, LoraLayer]] = {folder: {} for folder in networks}
    for name, roles in tensors.items():
        folder, rows = layers_by_name[name]
        for layer, lora_layer in _layers(files, name, rows, shapes[folder], roles, alphas.get(folder)).items():
            if layer in lora_layers[folder]:
                raise files.error(f"has a layer twice ({name:.120})")
            lora_layers[folder][layer] = lora_layer
    return Lora(
        files, tuple(lora_layers[folder] for folder in denoiser), tuple(lora_layers[folder] for folder in text_encoder)
    )


def _tensors_by_layer(files: ModelFiles, header: Sequence[TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """The tensors by layer and role."""
    by_layer: dict[str, dict[str, TensorInfo]] = {}
    for info in header:
        for marker, kind in _OTHERS.items():
            if marker in info.name and not info.name.endswith(tuple(_ROLES)):
                raise files.error(f"is no plain LoRA but {kind} ({info.name:.120})")
        ending = next((ending for ending in _ROLES if info.name.endswith(ending)), None)
        if ending is None:
            raise files.error(f"has a tensor that is none of a LoRA in kohya's or diffusers' names ({info.name:.120})")
        by_layer.setdefault(info.name.removesuffix(ending), {})[_ROLES[ending]] = info
    if not by_layer:
        raise files.error("has no tensors")
    return by_layer


def _matrix_shapes(weights: Weights) -> dict[str, Shape]:
    """The shapes of linear layers and convolutions by layer: matrices that are no tables of tokens or distances."""
    return {
        name.removesuffix(".weight"): info.shape
        for name, info in weights.items()
        if name.endswith(".weight") and len(info.shape) in (2, 4) and not _TABLES.intersection(name.split("."))
    }


def _layers(
    files: ModelFiles,
    name: str,
    rows: Sequence[LayerRows],
    shapes: Mapping[str, Shape],
    roles: Mapping[str, TensorInfo],
    alpha: float | None,
) -> dict[str, LoraLayer]:
    """What one name of a file adds to each layer of the model that it stands for, if its tensors suit them."""
    bases = {layer: shapes[layer] for layer, _, _ in rows}
    whole = (sum(base[0] for base in bases.values()), *bases[rows[0].layer][1:])
    _check_tensors(files, name, whole, roles)
    up = roles["up"]
    parts = {
        layer: up._replace(shape=(bases[layer][0], *up.shape[1:]), rows=own_rows, order=order)
        for layer, own_rows, order in rows
    }
    return {
        layer: LoraLayer(bases[layer], roles["down"], part, roles.get("alpha") or alpha)
        for layer, part in parts.items()
    }


def _check_tensors(files: ModelFiles, name: str, base: Shape, roles: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError unless the tensors are those of a LoRA for a matrix or kernels of this shape."""
    missing = {"down", "up"} - roles.keys()
    if missing:
        raise files.error(f"is half a LoRA ({name:.120} has no {missing.pop()})")
    down, up = roles["down"], roles["up"]
    for info in roles.values():
        if info.dtype not in DTYPES:
            raise files.error(f"has tensors of an unknown type ({info.name:.120} is {info.dtype:.20})")
    rank = down.shape[0] if down.shape else 0
    if not 1 <= rank <= MOST_RANK:
        raise files.error(f"has a rank that is not 1 to {MOST_RANK} ({down.name:.120} is {list(down.shape)})")
    # A linear layer may be written as a convolution of one cell, and the other way round.
    fits = _matrix_shape(down.shape) == _matrix_shape((rank, *base[1:])) and _matrix_shape(up.shape) == (base[0], rank)
    if not fits:
        raise files.error(
            f"is a LoRA of a model of other sizes ({name:.120}: {list(down.shape)} and {list(up.shape)} for a layer of "
            f"{list(base)})"
        )
    scalar = roles.get("alpha")
    if scalar is not None and math.prod(scalar.shape) != 1:
        raise files.error(f"has an alpha that is not one number ({scalar.name:.120})")


def _matrix_shape(shape: Shape) -> Shape:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _alphas(files: ModelFiles, metadata: Mapping[str, str]) -> dict[str, float]:
    """The alpha of each network, as diffusers writes PEFT's configuration. Raises ModelError for other settings."""
    settings_json = metadata.get("lora_adapter_metadata")
    if settings_json is None:
        return {}
    try:
        settings: dict[str, Any] = json.loads(settings_json)
        unsupported_keys = [
            key for key in settings if key.endswith((".use_rslora", ".use_dora", ".alpha_pattern")) and settings[key]
        ]
        if not unsupported_keys:
            ending = ".lora_alpha"
            return {key.removesuffix(ending): float(settings[key]) for key in settings if key.endswith(ending)}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise files.error("has a lora_adapter_metadata that cannot be read") from error
    raise files.error(f"has more than one alpha for each network (lora_adapter_metadata has {unsupported_keys[0]:.80})")
