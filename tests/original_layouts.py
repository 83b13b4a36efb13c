"""Model folders written as single files in the key layouts of the first releases (CompVis, Stability, OpenCLIP).

Written from those layouts, and the other way round than the package reads them: by walking over the network's levels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def weights_of(folder: Path, part: str) -> Tensors:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def configuration_of(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_text())


def _with_prefix(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors below a name, below another one."""
    for name, tensor in tensors.items():
        if name.startswith(f"{old}."):
            yield new + name[len(old) :], tensor


def _resnet(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in _RESNET.items():
        yield from _with_prefix(tensors, f"{old}.{ours}", f"{new}.{theirs}")


def ldm_unet(tensors: Tensors, configuration: dict[str, Any]) -> Tensors:
    """A UNet as numbered blocks: input, middle, output."""
    levels, layers = len(configuration["block_out_channels"]), configuration["layers_per_block"]
    renamed: list[tuple[str, Tensor]] = []
    for old, new in {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        renamed += _with_prefix(tensors, old, new)
    renamed += _resnet(tensors, "mid_block.resnets.0", "middle_block.0")
    renamed += _resnet(tensors, "mid_block.resnets.1", "middle_block.2")
    for level in range(levels):
        for layer in range(layers):
            place = f"input_blocks.{1 + level * (layers + 1) + layer}"
            renamed += _resnet(tensors, f"down_blocks.{level}.resnets.{layer}", f"{place}.0")
            renamed += _with_prefix(tensors, f"down_blocks.{level}.attentions.{layer}", f"{place}.1")
        downsampler = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        renamed += _with_prefix(tensors, f"down_blocks.{level}.downsamplers.0.conv", downsampler)
        for layer in range(layers + 1):
            place = f"output_blocks.{level * (layers + 1) + layer}"
            renamed += _resnet(tensors, f"up_blocks.{level}.resnets.{layer}", f"{place}.0")
            attention = [*_with_prefix(tensors, f"up_blocks.{level}.attentions.{layer}", f"{place}.1")]
            renamed += attention
            if layer == layers:
                upsampler = f"{place}.{2 if attention else 1}.conv"
                renamed += _with_prefix(tensors, f"up_blocks.{level}.upsamplers.0.conv", upsampler)
    assert len(renamed) == len(tensors)
    return {f"model.diffusion_model.{name}": tensor for name, tensor in renamed}


def ldm_vae(tensors: Tensors) -> Tensors:
    """An autoencoder whose attention is of convolutions, and whose levels count from the finest one."""
    renamed: Tensors = {}
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up_blocks."))
    for name, tensor in tensors.items():
        words = name.split(".")
        match words:
            case [half, "down_blocks", level, "resnets", layer, *rest]:
                words = [half, "down", level, "block", layer, *rest]
            case [half, "down_blocks", level, "downsamplers", "0", *rest]:
                words = [half, "down", level, "downsample", *rest]
            case [half, "up_blocks", level, "resnets", layer, *rest]:
                words = [half, "up", str(levels - 1 - int(level)), "block", layer, *rest]
            case [half, "up_blocks", level, "upsamplers", "0", *rest]:
                words = [half, "up", str(levels - 1 - int(level)), "upsample", *rest]
            case [half, "mid_block", "resnets", layer, *rest]:
                words = [half, "mid", f"block_{int(layer) + 1}", *rest]
            case [half, "mid_block", "attentions", "0", kind, *rest]:
                ldm_names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
                words = [half, "mid", "attn_1", ldm_names[kind], rest[-1]]
                if tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
            case [half, "conv_norm_out", *rest]:
                words = [half, "norm_out", *rest]
            case _:
                pass
        ldm_name = ".".join("nin_shortcut" if word == "conv_shortcut" else word for word in words)
        renamed[f"first_stage_model.{ldm_name}"] = tensor
    assert len(renamed) == len(tensors)
    return renamed


def hf_clip(tensors: Tensors, prefix: str) -> Tensors:
    """A text encoder as transformers had it in 2022."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def open_clip(tensors: Tensors, prefix: str) -> Tensors:
    """A text encoder as OpenCLIP has it: queries, keys and values in one matrix, the projection as a matrix."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    weights = {
        "positional_embedding": plain.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": plain.pop("embeddings.token_embedding.weight"),
        "ln_final.weight": plain.pop("final_layer_norm.weight"),
        "ln_final.bias": plain.pop("final_layer_norm.bias"),
        "logit_scale": torch.tensor(4.6),
    }
    projection = plain.pop("text_projection.weight", None)
    width = weights["ln_final.weight"].shape[0]
    weights["text_projection"] = torch.randn(width, width) if projection is None else projection.T
    layers = 1 + max(int(name.split(".")[2]) for name in plain)
    for layer in range(layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            fused = [plain.pop(f"{old}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            weights[f"{new}.attn.in_proj_{kind}"] = torch.cat(fused)
            for ours, theirs in _OPEN_CLIP.items():
                weights[f"{new}.{theirs}.{kind}"] = plain.pop(f"{old}.{ours}.{kind}")
    assert not plain
    return {prefix + name: tensor for name, tensor in weights.items()}


def original(folder: Path, kind: str) -> Tensors:
    """All tensors of a folder of `sd1`, `sd2` or `sdxl`, as one file has them."""
    all_tensors = ldm_unet(weights_of(folder, "unet"), configuration_of(folder, "unet")) | ldm_vae(
        weights_of(folder, "vae")
    )
    first = weights_of(folder, "text_encoder")
    match kind:
        case "sd1":
            all_tensors |= hf_clip(first, "cond_stage_model.transformer.")
            all_tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        case "sd2":
            all_tensors |= open_clip(first, "cond_stage_model.model.")
        case _:
            all_tensors |= hf_clip(first, "conditioner.embedders.0.transformer.")
            all_tensors |= open_clip(weights_of(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    return all_tensors | {"model_ema.decay": torch.tensor(0.9999), "alphas_cumprod": torch.ones(1000)}


def written(folder: Path, file: Path, kind: str, *, beside: bool = True) -> Tensors:
    """Write a folder's tensors as one file, and if asked for its configurations in the folder beside that."""
    tensors = original(folder, kind)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    if beside:
        shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return tensors
