"""Models of any width with random weights, as folders: drawn tensor by tensor, and never whole in memory."""

from __future__ import annotations

import json
import math
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue] - made when it is asked for
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from prefect_regional_diffusion.sampling_core.models import CLIP_TOKENIZER

SHARD_BYTES = 2**31
FULL_TEXT_LAYERS = 2
"""Text encoders have their width and not their depth: prompts are no part of what is measured."""


class Widths(NamedTuple):
    """Widths of a family's networks; `share` of the published ones, which are at 1."""

    share: float

    def of(self, published: int, multiple: int) -> int:
        """A width, as a multiple of a number that its layers ask for."""
        return max(multiple, round(published * self.share / multiple) * multiple)


def write_sdxl(folder: Path, widths: Widths, dtype: torch.dtype) -> str:
    """A folder of Stable Diffusion XL: its name."""
    channels = [widths.of(width, 64) for width in (320, 640, 1280)]
    first, second = widths.of(768, 64), widths.of(1280, 64)
    time = widths.of(256, 32)
    texts = (_clip(first, "quick_gelu"), _clip(second, "gelu", projection_dim=second))
    # diffusers' annotations know no lists of more than one level.
    unet: dict[str, Any] = {
        "sample_size": 128,
        "block_out_channels": channels,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [width // 64 for width in channels],
        "cross_attention_dim": first + second,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time,
        "projection_class_embeddings_input_dim": 6 * time + second,
    }
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet),
            "vae": _vae(widths, 4, scaling_factor=0.13025),
            "text_encoder": CLIPTextModel(texts[0]),
            "text_encoder_2": CLIPTextModelWithProjection(texts[1]),
        }
    index = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "EulerDiscreteScheduler"}
    clip = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    clip |= {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    _write(folder, "StableDiffusionXLPipeline", networks, index, clip, betas, dtype)
    for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        _clip_tokenizer(folder / name, padding)
    return str(folder)


def write_flux(folder: Path, widths: Widths, dtype: torch.dtype) -> str:
    """A folder of FLUX.1 dev: its name."""
    heads, t5, pooled = max(1, round(24 * widths.share)), widths.of(4096, 64), widths.of(768, 64)
    text = T5Config(
        vocab_size=64, d_model=t5, d_kv=64, d_ff=2 * t5, num_layers=FULL_TEXT_LAYERS, num_heads=t5 // 64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "transformer": FluxTransformer2DModel(
                num_attention_heads=heads, joint_attention_dim=t5, pooled_projection_dim=pooled, guidance_embeds=True
            ),
            "vae": _vae(
                widths, 16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
            ),
            "text_encoder": CLIPTextModel(_clip(pooled, "quick_gelu")),
            "text_encoder_2": T5EncoderModel(text),
        }
    index = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
    index |= {"scheduler": "FlowMatchEulerDiscreteScheduler"}
    texts = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    texts |= {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}
    levels = {"shift": 3.0, "use_dynamic_shifting": True, "num_train_timesteps": 1000}
    _write(folder, "FluxPipeline", networks, index, texts, levels, dtype)
    _clip_tokenizer(folder / "tokenizer", "<|endoftext|>")
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -4.0) for letter in string.ascii_letters),
    ]
    T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer_2")
    return str(folder)


def _clip(width: int, activation: str, **fields: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=FULL_TEXT_LAYERS,
        num_attention_heads=width // 64, hidden_act=activation, bos_token_id=49406, eos_token_id=49407,
        pad_token_id=49407, **fields,
    )  # fmt: skip


def _vae(widths: Widths, channels: int, **fields: Any) -> AutoencoderKL:
    levels: dict[str, Any] = {
        "block_out_channels": [widths.of(width, 32) for width in (128, 256, 512, 512)],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return AutoencoderKL(**levels, layers_per_block=2, latent_channels=channels, sample_size=1024, **fields)


def _clip_tokenizer(folder: Path, padding: str) -> None:
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(CLIP_TOKENIZER / name, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))


def _write(
    folder: Path,
    pipeline: str,
    networks: Mapping[str, Any],
    of_diffusers: Mapping[str, str],
    of_transformers: Mapping[str, str],
    scheduler: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    classes = {name: ["diffusers", cls] for name, cls in of_diffusers.items()}
    classes |= {name: ["transformers", cls] for name, cls in of_transformers.items()}
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline} | classes))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(scheduler)))
    generator = torch.Generator().manual_seed(0)
    for name, network in networks.items():
        (folder / name).mkdir()
        if name in of_diffusers:
            network.save_config(folder / name)
        else:
            network.config.save_pretrained(folder / name)
        stem = "diffusion_pytorch_model" if name in of_diffusers else "model"
        _write_weights(folder / name, stem, network, dtype, generator)


def _write_weights(folder: Path, stem: str, network: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Matrices of the size that keeps what goes through them; norms of ones; in shards that fit into memory."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shared = {"encoder.embed_tokens.weight"}  # of T5: the file has it once
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    names = [name for name in shapes if name not in shared]
    for name in names:
        shard[name] = _tensor(name, shapes[name], generator).to(dtype)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES or name == names[-1]:
            file = f"{stem}-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard = {}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
