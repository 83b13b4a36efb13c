"""Small IP-Adapters and image encoders with random weights for tiny models, in the names that published files have."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from diffusers import UNet2DConditionModel as UNet
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.made_once import made_once
from tests.tiny_models import lively


class EncoderSizes(NamedTuple):
    """Of an image encoder: features of a patch, of the whole picture, and pixels of a picture and of a patch."""

    width: int = 32
    projection: int = 24
    pixels: int = 32
    patch: int = 8
    layers: int = 3


SMALL = EncoderSizes()
OTHER = EncoderSizes(width=48, projection=40, pixels=48, patch=16, layers=2)


@made_once
def tiny_image_encoder(folder: Path, seed: int = 0, sizes: EncoderSizes = SMALL) -> str:
    """The name of a new folder of CLIP's image encoder."""
    torch.manual_seed(seed)
    configuration = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=2 * sizes.width,
        projection_dim=sizes.projection,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        image_size=sizes.pixels,
        patch_size=sizes.patch,
    )
    lively(CLIPVisionModelWithProjection(configuration), "patch_embedding").save_pretrained(folder)
    return str(folder)


class _Random:
    """Random matrices and norms."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int, size: float = 1.0) -> Tensor:
        return self.vector(rows, columns) * (size / columns**0.5)

    def vector(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + 0.1 * self.vector(width), f"{name}.bias": 0.1 * self.vector(width)}


def _plain_weights(random: _Random, reads: int, features: int, tokens: int = 4) -> dict[str, Tensor]:
    return {
        "proj.weight": random.matrix(tokens * reads, features, 2.0),
        "proj.bias": 0.2 * random.vector(tokens * reads),
        **random.norm("norm", reads),
    }


def _plus_weights(random: _Random, token_width: int, features: int, tokens: int = 6) -> dict[str, Tensor]:
    width, inner = 96, 128
    weights = {
        "latents": random.vector(1, tokens, width),
        "proj_in.weight": random.matrix(width, features, 2.0),
        "proj_in.bias": 0.2 * random.vector(width),
        "proj_out.weight": random.matrix(token_width, width),
        "proj_out.bias": 0.2 * random.vector(token_width),
        **random.norm("norm_out", token_width),
    }
    for layer in (f"layers.{i}" for i in range(4)):
        weights |= random.norm(f"{layer}.0.norm1", width) | random.norm(f"{layer}.0.norm2", width)
        weights |= random.norm(f"{layer}.1.0", width)
        weights[f"{layer}.0.to_q.weight"] = random.matrix(inner, width)
        weights[f"{layer}.0.to_kv.weight"] = random.matrix(2 * inner, width)
        weights[f"{layer}.0.to_out.weight"] = random.matrix(width, inner)
        weights[f"{layer}.1.1.weight"] = random.matrix(4 * width, width)
        weights[f"{layer}.1.3.weight"] = random.matrix(width, 4 * width)
    return weights


def unet_adapter(
    unet: UNet | str | Path, seed: int = 1, *, plus: bool = False, sizes: EncoderSizes = SMALL
) -> dict[str, Tensor]:
    """An IP-Adapter for a UNet, or for that of a model folder."""
    if not isinstance(unet, UNet):
        unet = UNet.from_pretrained(Path(unet) / "unet", local_files_only=True)
    random = _Random(seed)
    projection = _plus_weights if plus else _plain_weights
    token_width = unet.config["cross_attention_dim"]
    weights = projection(random, token_width, sizes.width if plus else sizes.projection)
    tensors = {f"image_proj.{name}": tensor for name, tensor in weights.items()}
    for number, name in enumerate(unet.attn_processors):
        if not name.endswith("attn1.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for role, size in (("k", 1.5), ("v", 3.0)):
                tensors[f"ip_adapter.{number}.to_{role}_ip.weight"] = random.matrix(width, token_width, size)
    return tensors


def flux_adapter(
    transformer: FluxTransformer2DModel | str | Path, seed: int = 1, sizes: EncoderSizes = SMALL, *, xlabs: bool = False
) -> dict[str, Tensor]:
    """An IP-Adapter for a transformer of FLUX.1, or for that of a model folder; in XLabs' names, or InstantX'."""
    if not isinstance(transformer, FluxTransformer2DModel):
        transformer = FluxTransformer2DModel.from_pretrained(Path(transformer) / "transformer", local_files_only=True)
    random, reads = _Random(seed), transformer.config["joint_attention_dim"]
    first = "ip_adapter_proj_model" if xlabs else "image_proj"
    tensors = {f"{first}.{name}": tensor for name, tensor in _plain_weights(random, reads, sizes.projection).items()}
    for number in range(transformer.config["num_layers"]):
        for role, size in (("k", 1.5), ("v", 1.0)):
            name = f"ip_adapter.{number}.to_{role}_ip"
            if xlabs:
                name = f"double_blocks.{number}.processor.ip_adapter_double_stream_{role}_proj"
            tensors[f"{name}.weight"] = random.matrix(transformer.inner_dim, reads, size)
            tensors[f"{name}.bias"] = 0.1 * random.vector(transformer.inner_dim)
    return tensors


def save_adapter(tensors: Mapping[str, Tensor], file: str | Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return str(file)


def as_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The tensors as diffusers' loaders hand them on."""
    return {
        part: {name.removeprefix(f"{part}."): one for name, one in tensors.items() if name.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }


PLAIN, PLUS = "plain.safetensors", "plus.safetensors"
COLORS = {"red.png": (200, 40, 30), "blue.png": (30, 60, 220)}


def picture(seed: int, width: int = 70, height: int = 50, color: tuple[int, int, int] = (128, 128, 128)) -> Image.Image:
    """A picture that is no square, of coarse noise around a colour."""
    noise = np.random.default_rng(seed).integers(-40, 40, (5, 7, 3))
    coarse = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_prompt_files(folder: Path, model: str | Path, sizes: EncoderSizes = SMALL, *, flux: bool = False) -> Path:
    """The folder, with IP-Adapters for a model folder, an image encoder for them, and pictures."""
    if flux:
        save_adapter(flux_adapter(model, sizes=sizes), folder / PLAIN)
    else:
        save_adapter(unet_adapter(model, sizes=sizes), folder / PLAIN)
        save_adapter(unet_adapter(model, 2, plus=True, sizes=sizes), folder / PLUS)
    tiny_image_encoder(folder / "image_encoder", sizes=sizes)
    for seed, (name, color) in enumerate(COLORS.items()):
        picture(seed, color=color).save(folder / name)
    return folder
