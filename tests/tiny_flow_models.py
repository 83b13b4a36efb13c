"""Small flow models with random weights, made from nothing with the libraries' own classes, as in `tiny_models`."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.made_once import made_once
from tests.tiny_models import clip_config, clip_tokenizer, letters, lively, tiny_vae


class FlowSizes(NamedTuple):
    """How wide and deep a tiny model is. CLIP's encoders have `text` features each, T5 has `t5`; `vae` is by level."""

    text: tuple[int, int] = (32, 48)
    text_layers: int = 3
    t5: int = 96
    t5_layers: int = 2
    heads: int = 4
    layers: int = 2
    vae: tuple[int, int, int, int] = (16, 16, 32, 32)


SMALL = FlowSizes()
OTHER = FlowSizes(text=(48, 64), text_layers=2, t5=128, t5_layers=3, heads=6, layers=3, vae=(8, 24, 24, 40))


def t5_tokenizer() -> T5TokenizerFast:
    """Each letter is a token, and so are a few pieces of words; what has no letter in it is unknown."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("▁", -2.0), ("▁a", -2.5), ("circle", -4.0), ("re", -3.5), ("▁red", -4.5), ("d", -3.25)]
    letters = [(letter, -5.0 - i / 26) for i, letter in enumerate(string.ascii_letters) if letter != "d"]
    return T5TokenizerFast(vocab=[*special, *pieces, *letters], extra_ids=0, model_max_length=512)


def t5_encoder(width: int, layers: int) -> T5EncoderModel:
    return lively(
        T5EncoderModel(
            T5Config(
                vocab_size=64,
                d_model=width,
                d_kv=8,
                d_ff=2 * width,
                num_layers=layers,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
    )


def flow_vae(sizes: FlowSizes, scale: float, shift: float) -> AutoencoderKL:
    """One of 16 channels, with a shift, and without the convolutions around the latents."""
    apart = {"use_quant_conv": False, "use_post_quant_conv": False}
    return tiny_vae(sizes.vae, 16, scaling_factor=scale, shift_factor=shift, **apart)


@made_once
def tiny_sd3(
    folder: Path,
    seed: int = 0,
    sizes: FlowSizes = SMALL,
    *,
    t5: bool = True,
    of_35: bool = False,
    positions: int = 24,
    shift: float = 3.0,
) -> str:
    """The name of a new folder of Stable Diffusion 3, or 3.5, whose text encoders may be CLIP's alone."""
    torch.manual_seed(seed)
    first, second = sizes.text
    projections = (40, 56)
    later: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if of_35 else {}
    transformer = SD3Transformer2DModel(
        sample_size=16,
        num_layers=sizes.layers,
        attention_head_dim=8,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.t5,
        caption_projection_dim=8 * sizes.heads,
        pooled_projection_dim=sum(projections),
        pos_embed_max_size=positions,
        **later,
    )
    clip = [
        lively(CLIPTextModelWithProjection(clip_config(width, sizes.text_layers, hidden_act=act, projection_dim=to)))
        for width, act, to in zip((first, second), ("quick_gelu", "gelu"), projections, strict=True)
    ]
    pipeline = StableDiffusion3Pipeline(
        transformer=lively(transformer, "context_embedder.weight"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=flow_vae(sizes, 1.5305, 0.0609),
        text_encoder=clip[0],
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip[1],
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5_encoder(sizes.t5, sizes.t5_layers) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return str(folder)


@made_once
def tiny_flux(folder: Path, seed: int = 0, sizes: FlowSizes = SMALL, *, schnell: bool = False) -> str:
    """The name of a new folder of FLUX.1 dev, or schnell."""
    torch.manual_seed(seed)
    width = sizes.text[0]
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=sizes.layers,
        num_single_layers=sizes.layers + 1,
        attention_head_dim=16,
        num_attention_heads=sizes.heads // 2,
        joint_attention_dim=sizes.t5,
        pooled_projection_dim=width,
        guidance_embeds=not schnell,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        transformer=lively(transformer, "context_embedder.weight", "time_text_embed"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell),
        vae=flow_vae(sizes, 0.3611, 0.1159),
        text_encoder=lively(CLIPTextModel(clip_config(width, sizes.text_layers))),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(sizes.t5, sizes.t5_layers),
        tokenizer_2=t5_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return str(folder)


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's own comes to for the messages of a user."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Each byte is a token, and so are a few pairs of them."""
    pairs = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("i", "r")]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*letters(), *("".join(pair) for pair in pairs)]
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=pairs,
        additional_special_tokens=special[1:],
        chat_template=TEMPLATE,
    )


@made_once
def tiny_z_image(
    folder: Path,
    seed: int = 0,
    sizes: FlowSizes = SMALL,
    *,
    lengths: Sequence[int] = (128, 32, 32),
    shift: float = 3.0,
) -> str:
    """The name of a new folder of Z-Image, with positions for `lengths`: prompts and pictures, rows, columns."""
    torch.manual_seed(seed)
    width = sizes.t5
    transformer = ZImageTransformer2DModel(
        dim=16 * sizes.heads,
        n_layers=sizes.layers,
        n_refiner_layers=sizes.layers - 1,
        n_heads=sizes.heads,
        n_kv_heads=sizes.heads,
        cap_feat_dim=width,
        axes_dims=(8, 4, 4),
        axes_lens=tuple(lengths),
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=300,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=sizes.t5_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    pipeline = ZImagePipeline(
        transformer=lively(transformer, "cap_embedder.1.weight"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=flow_vae(sizes, 0.3611, 0.1159),
        text_encoder=lively(encoder),
        tokenizer=qwen_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return str(folder)
