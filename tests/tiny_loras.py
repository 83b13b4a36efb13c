"""Small LoRAs with random weights for tiny models, in the names that people's files have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_models import tiny_sd, tiny_sdxl

RANK, ALPHA = 4, 8.0
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "text_encoder_3": "model.safetensors",
}
KOHYA = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
TABLES = ("embeddings.", "shared.", "embed_tokens.", "relative_attention_bias.")
ROWLESS = ("all_x_embedder.", "cap_embedder.")
"""Layers of Z-Image in which the tokens of all rows are one sequence."""


@dataclass(frozen=True)
class TinyLora:
    """`down` and `up` by network and layer, as diffusers and transformers name them; `up @ down * 2` is added."""

    layers: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]

    def peft(self) -> dict[str, Tensor]:
        """As diffusers writes it; without a word of alpha, so it is in the numbers."""
        tensors: dict[str, Tensor] = {}
        for network, layers in self.layers.items():
            for layer, (down, up) in layers.items():
                tensors[f"{network}.{layer}.lora_A.weight"] = down
                tensors[f"{network}.{layer}.lora_B.weight"] = up * (ALPHA / RANK)
        return tensors

    def kohya(self, names: Mapping[str, str] = KOHYA) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for network, layers in self.layers.items():
            for layer, (down, up) in layers.items():
                # As kohya's files have it, whatever this release of transformers calls its layers.
                inner = "text_model_" if layer.startswith("encoder.layers.") else ""
                name = f"{names[network]}_{inner}{layer.replace('.', '_')}"
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        return tensors


def tiny_lora(
    folder: str | Path, seed: int, networks: tuple[str, ...] = ("unet",), part: str = "", size: float = 0.3
) -> TinyLora:
    """A LoRA for the layers of a model folder's networks with `part` in their names: linear ones and convolutions."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for network in networks:
        layers[network] = {}
        for name, weight in sorted(load_file(Path(folder) / network / WEIGHTS[network]).items()):
            in_table = any(one in name for one in (*TABLES, *ROWLESS))
            is_layer = weight.ndim in (2, 4) and name.endswith(".weight") and not in_table
            if not is_layer or part not in name:
                continue
            kernel = weight.shape[2:]
            fan_in = weight[0].numel()
            down = torch.randn(RANK, *weight.shape[1:], generator=generator) / fan_in**0.5
            up = torch.randn(weight.shape[0], RANK, *[1] * len(kernel), generator=generator) * (size / RANK)
            layers[network][name.removesuffix(".weight")] = (down, up)
    return TinyLora(layers)


def save_lora(tensors: Mapping[str, Tensor], file: str | Path, metadata: dict[str, str] | None = None) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return str(file)


def merged(folder: str | Path, new: Path, *weighted: tuple[TinyLora, float]) -> str:
    """A copy of a model folder with LoRAs in its weights, each times its strength."""
    shutil.copytree(folder, new)
    for lora, strength in weighted:
        for network, layers in lora.layers.items():
            file = new / network / WEIGHTS[network]
            tensors = load_file(file)
            for layer, (down, up) in layers.items():
                weight = tensors[f"{layer}.weight"]
                product = (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
                tensors[f"{layer}.weight"] = (weight.double() + product * (strength * ALPHA / RANK)).to(weight.dtype)
            save_file(tensors, file, {"format": "pt"})
    return str(new)


TEXT = {
    "sd": ("text_encoder",),
    "xl": ("text_encoder", "text_encoder_2"),
    "flux": ("text_encoder", "text_encoder_2"),
    "sd3": ("text_encoder", "text_encoder_2", "text_encoder_3"),
    "z-image": ("text_encoder",),
}
MADE = {"sd": tiny_sd, "xl": tiny_sdxl, "flux": tiny_flux, "sd3": tiny_sd3, "z-image": tiny_z_image}
UNETS, FLOWS = ["sd", "xl"], ["flux", "sd3", "z-image"]
MODELS = [*UNETS, *FLOWS]
DENOISER = dict.fromkeys(UNETS, "unet") | dict.fromkeys(FLOWS, "transformer")


def lora_models(folder: Path, models: Sequence[str] = MODELS) -> Path:
    """The folder, with models of these names; of each, files of LoRAs `a`, `b`, and of one that acts on text, `t`."""
    for model in models:
        MADE[model](folder / model)
        save_lora(lora_of(folder, model, "a").peft(), folder / f"{model}-a.safetensors")
        for name in "bt":
            save_lora(lora_of(folder, model, name).kohya(), folder / f"{model}-{name}.safetensors")
    return folder


def lora_of(folder: Path, model: str, name: str) -> TinyLora:
    """What a file of `lora_models` has."""
    networks = (DENOISER[model],)
    match name:
        case "a":
            return tiny_lora(folder / model, 1, networks)
        case "b":
            return tiny_lora(folder / model, 2, networks, part="to_")
        case _:
            return tiny_lora(folder / model, 3, (*TEXT[model], *networks), size=0.8)


def opened(model: str, file: str) -> Lora:
    """A file compared with a model."""
    return open_folder(model).open_lora(find_file("loras.0.file", file, str(Path(file).resolve())))


def used(model: str, name: str, strength: float = 1.0, **fields: Any) -> dict[str, Any]:
    """One of `lora_models` in a job."""
    return {"file": f"{model}-{name}.safetensors", "strength": strength, **fields}


def asked(model: str = "sd", **fields: Any) -> dict[str, Any]:
    """A job."""
    job = {"model": model, "prompt": "a red circle", "width": 128, "height": 128, "seed": 3, "steps": 4, "cfg": 4.0}
    return job | {"sampler": "dpmpp_2m", "scheduler": "simple", "base_only_steps": 0} | fields
