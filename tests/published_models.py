"""Narrow models, built as the published ones where no shape says how: heads, groups, activations, scales."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from prefect_regional_diffusion.sampling_core.models import CLIP_TOKENIZER
from tests.tiny_flow_models import t5_encoder, t5_tokenizer
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


def _flow_vae(scale: float, shift: float) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return lively(vae)


def sd3_as_published(folder: Path, *, of_35: bool = False) -> None:
    """A new folder of Stable Diffusion 3, or 3.5, without T5."""
    torch.manual_seed(0)
    later: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if of_35 else {}
    transformer = SD3Transformer2DModel(
        sample_size=128,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=256,
        caption_projection_dim=128,
        pooled_projection_dim=64 + 128,
        pos_embed_max_size=64,
        **later,
    )
    StableDiffusion3Pipeline(
        transformer=lively(transformer, "context_embedder.weight"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flow_vae(1.5305, 0.0609),
        text_encoder=lively(CLIPTextModelWithProjection(_text(64, "quick_gelu", projection_dim=64))),
        tokenizer=_tokenizer("<|endoftext|>"),
        text_encoder_2=lively(CLIPTextModelWithProjection(_text(128, "gelu", projection_dim=128))),
        tokenizer_2=_tokenizer("!"),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


def flux_as_published(folder: Path, *, schnell: bool = False) -> None:
    """A new folder of FLUX.1 dev, or schnell."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=not schnell,
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
    FluxPipeline(
        transformer=lively(transformer, "context_embedder.weight", "time_text_embed"),
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 1.0} if schnell else dynamic)),
        vae=_flow_vae(0.3611, 0.1159),
        text_encoder=lively(CLIPTextModel(_text(64, "quick_gelu"))),
        tokenizer=_tokenizer("<|endoftext|>"),
        text_encoder_2=t5_encoder(96, 2),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
