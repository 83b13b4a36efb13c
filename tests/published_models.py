"""Narrow models, built as the published ones where no shape says how: heads, groups, activations, scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from prefect_regional_diffusion.sampling_core.models import CLIP_TOKENIZER
from tests.tiny_models import BETAS, lively

_WIDTHS = (64, 128, 128)


def _tokenizer(padding: str) -> CLIPTokenizer:
    vocabulary, merges = (str(CLIP_TOKENIZER / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=77)


def _text(width: int, activation: str, **fields: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
        **fields,
    )


def _vae(edge: int, scaling: float) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=edge,
        scaling_factor=scaling,
    )
    return lively(vae)


def _unet(edge: int, attends: tuple[bool, bool, bool], **fields: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=edge // 8,
        block_out_channels=_WIDTHS,
        down_block_types=tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
        layers_per_block=2,
        **fields,
    )
    return lively(unet, "attn2.to_v", "attn2.to_out", "add_embedding.linear_2")


def as_published(folder: Path, kind: str, seed: int = 0) -> None:
    """A new folder of `sd1` or `sdxl`."""
    torch.manual_seed(seed)
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    if kind == "sd1":
        StableDiffusionPipeline(
            vae=_vae(512, 0.18215),
            text_encoder=lively(CLIPTextModel(_text(64, "quick_gelu"))),
            tokenizer=_tokenizer("<|endoftext|>"),
            unet=_unet(512, (True, True, False), cross_attention_dim=64, attention_head_dim=8),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,  # pyright: ignore[reportArgumentType] - may be None, its type does not say so
            requires_safety_checker=False,
        ).save_pretrained(folder)
        return
    StableDiffusionXLPipeline(
        vae=_vae(1024, 0.13025),
        text_encoder=lively(CLIPTextModel(_text(64, "quick_gelu"))),
        text_encoder_2=lively(CLIPTextModelWithProjection(_text(128, "gelu", projection_dim=128))),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        unet=_unet(
            1024,
            (False, True, True),
            cross_attention_dim=192,
            attention_head_dim=(1, 2, 2),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 3),
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 128,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)
