"""Small ControlNets and T2I-Adapters with random weights for the models of `tests.tiny_models`, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image

from tests.tiny_models import tiny_sd, tiny_sdxl, unet_of

MODELS = ("sd", "xl")
HINT_CHANNELS = (8, 8, 16, 16)


def tiny_controlnet(model: str | Path, folder: str | Path, seed: int, size: float = 0.5, **fields: Any) -> str:
    """A new folder with a ControlNet for a model folder. What diffusers makes zero is random, or nothing is added."""
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(unet_of(model), conditioning_embedding_out_channels=HINT_CHANNELS, **fields)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                parameter.copy_(torch.randn_like(parameter) * (size / parameter.shape[0] ** 0.5))
            elif name.startswith("controlnet_cond_embedding"):
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(torch.randn_like(parameter) * (2 / fan_in**0.5))
    network.save_pretrained(folder)
    return str(folder)


def tiny_adapter(folder: str | Path, seed: int, kind: str, channels: tuple[int, ...], **fields: Any) -> str:
    """A new folder with a T2I-Adapter whose maps have these channels."""
    torch.manual_seed(seed)
    edge = 16 if kind == "full_adapter_xl" else 8
    configuration: dict[str, Any] = {
        "channels": list(channels),
        "num_res_blocks": 1,
        "downscale_factor": edge,
        "adapter_type": kind,
    } | fields
    network = T2IAdapter(**configuration)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn_like(parameter) * (1.5 / fan_in**0.5 if parameter.ndim > 1 else 0.1))
    network.save_pretrained(folder)
    return str(folder)


def control_picture(file: str | Path, seed: int, width: int = 128, height: int = 128) -> str:
    """A picture with soft coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).save(file)
    return str(file)


def control_models(folder: Path) -> Path:
    """The folder, with models `xl` and `sd`; of each, ControlNets `a` and `b`, and an adapter `t`; and pictures."""
    tiny_sdxl(folder / "xl")
    tiny_sd(folder / "sd")
    for model in MODELS:
        tiny_controlnet(folder / model, folder / f"{model}-a", 1)
        tiny_controlnet(folder / model, folder / f"{model}-b", 2)
        # The UNets of both have SDXL's blocks: the first one without attention.
        tiny_adapter(folder / f"{model}-t", 3, "full_adapter_xl", (32, 64, 64, 64))
    for number in (1, 2):
        control_picture(folder / f"{number}.png", number)
    return folder


def used(model: str, name: str, image: str = "1.png", strength: float = 1.0, **fields: Any) -> dict[str, Any]:
    """One of `control_models` in a job."""
    return {"file": f"{model}-{name}", "image": image, "strength": strength, **fields}
