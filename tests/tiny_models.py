"""Small models with random weights of each family, made from nothing with the libraries' own classes.

Like the real ones where it counts: four levels in the autoencoder, text encoders of different widths, tokenizers in
which each letter is a token. What is drawn with them is noise that hangs on everything that the networks are told.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.made_once import made_once

BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Sizes(NamedTuple):
    """How wide and deep a tiny model is. Text encoders have `text` features each; `unet` and `vae` are by level."""

    text: tuple[int, int] = (32, 48)
    text_layers: int = 3
    unet: tuple[int, int, int] = (32, 64, 64)
    layers: int = 1
    transformers: tuple[int, int, int] = (1, 1, 2)
    vae: tuple[int, int, int, int] = (16, 16, 32, 32)


SMALL = Sizes()
OTHER = Sizes(text=(48, 64), text_layers=2, unet=(32, 32, 96), layers=2, transformers=(1, 2, 1), vae=(8, 24, 24, 40))


def letters() -> list[str]:
    """The alphabet that CLIP's tokenizer spells bytes in."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + i for i in range(256 - len(plain))]
    return [chr(code) for code in (*plain, *others)]


def clip_tokenizer(padding: str = "<|endoftext|>") -> CLIPTokenizer:
    """A tokenizer of 514 tokens: each letter, each letter at a word's end, begin and end."""
    alphabet = letters()
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=padding, model_max_length=77)


def clip_config(width: int, layers: int, **fields: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **fields,
    )


def lively(network: Any, *louder: str) -> Any:
    """The network with biases that are not zero, and some weights enlarged, so that what it is told can be seen."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.02 * torch.randn_like(parameter))
            if any(part in name for part in louder):
                parameter.mul_(4)
    return network.eval()


def tiny_vae(widths: Sequence[int], channels: int = 4, **fields: Any) -> AutoencoderKL:
    """The picture of latents of unit variance has contrast."""
    levels = len(widths)
    vae = AutoencoderKL(
        block_out_channels=tuple(widths),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=128,
        **fields,
    )
    return lively(vae)


def tiny_unet(sizes: Sizes, cross: int, *, attends: Sequence[bool] = (False, True, True), **fields: Any) -> UNet:
    """`attends` says which levels have attention: in SDXL all but the first, in Stable Diffusion 1 all but the last."""
    return lively(
        UNet(
            sample_size=16,
            block_out_channels=sizes.unet,
            down_block_types=tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
            layers_per_block=sizes.layers,
            cross_attention_dim=cross,
            norm_num_groups=8,
            **fields,
        ),
        "attn2.to_v",
        "attn2.to_out",
        "add_embedding.linear_2",
    )


def _scheduler(**fields: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1, **fields)


def unet_of(folder: str | Path) -> UNet:
    """The UNet of a model folder."""
    return UNet.from_pretrained(folder, subfolder="unet", local_files_only=True)


@made_once
def tiny_sd(
    folder: Path,
    seed: int = 0,
    sizes: Sizes = SMALL,
    *,
    sd2: bool = False,
    attends: Sequence[bool] = (False, True, True),
    **scheduler: Any,
) -> str:
    """The name of a new folder of Stable Diffusion 1, or 2. `scheduler` are fields of its scheduler's configuration."""
    torch.manual_seed(seed)
    heads: dict[str, Any] = (
        {"attention_head_dim": (4, 8, 8), "use_linear_projection": True} if sd2 else {"attention_head_dim": 4}
    )
    StableDiffusionPipeline(
        vae=tiny_vae(sizes.vae, scaling_factor=0.18215),
        text_encoder=lively(CLIPTextModel(clip_config(sizes.text[0], sizes.text_layers, hidden_act="gelu"))),
        tokenizer=clip_tokenizer("!" if sd2 else "<|endoftext|>"),
        unet=tiny_unet(sizes, sizes.text[0], attends=attends, **heads),
        scheduler=_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType] - may be None, its type does not say so
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


@made_once
def tiny_refiner(folder: Path, seed: int = 0, sizes: Sizes = SMALL, **scheduler: Any) -> str:
    """The name of a new folder of the refiner of Stable Diffusion XL, whose latents are those of a `tiny_sdxl`."""
    torch.manual_seed(seed)
    width, projection, of_a_size = sizes.text[1], 40, 8
    config = clip_config(width, sizes.text_layers + 1, hidden_act="gelu", projection_dim=projection)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=tiny_vae(sizes.vae, scaling_factor=0.13025),
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        text_encoder_2=lively(CLIPTextModelWithProjection(config)),
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        tokenizer_2=clip_tokenizer("!"),
        unet=tiny_unet(
            sizes,
            width,
            attention_head_dim=(4, 8, 8),
            use_linear_projection=True,
            transformer_layers_per_block=sizes.transformers,
            addition_embed_type="text_time",
            addition_time_embed_dim=of_a_size,
            projection_class_embeddings_input_dim=5 * of_a_size + projection,
        ),
        scheduler=_scheduler(**scheduler),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return str(folder)


@made_once
def tiny_sdxl(
    folder: Path,
    seed: int = 0,
    sizes: Sizes = SMALL,
    *,
    zeros: bool = True,
    vae: Mapping[str, Any] | None = None,
    **scheduler: Any,
) -> str:
    """The name of a new folder of Stable Diffusion XL. `vae` are fields of its autoencoder's configuration."""
    torch.manual_seed(seed)
    first, second = sizes.text
    projection, of_a_size = 40, 8
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(sizes.vae, **({"scaling_factor": 0.13025} | dict(vae or {}))),
        text_encoder=lively(CLIPTextModel(clip_config(first, sizes.text_layers))),
        text_encoder_2=lively(
            CLIPTextModelWithProjection(
                clip_config(second, sizes.text_layers + 1, hidden_act="gelu", projection_dim=projection)
            )
        ),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer("!"),
        unet=tiny_unet(
            sizes,
            first + second,
            attention_head_dim=(4, 8, 8),
            use_linear_projection=True,
            transformer_layers_per_block=sizes.transformers,
            addition_embed_type="text_time",
            addition_time_embed_dim=of_a_size,
            projection_class_embeddings_input_dim=6 * of_a_size + projection,
        ),
        scheduler=_scheduler(**scheduler),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return str(folder)
