"""The configurations of Stable Diffusion 1 and 2, as diffusers and transformers have written them since 2022."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from prefect_regional_diffusion.sampling_core.models.clip_text import CLIPTextModel
from prefect_regional_diffusion.sampling_core.models.configurations import (
    Configuration,
    NetworkConfiguration,
    Positive,
    Shape,
    Share,
    Width,
)

PIPELINE = "StableDiffusionPipeline"

Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
Layers = Annotated[int, Field(ge=1, le=32)]
PerLevel = Annotated[list[Width], Field(min_length=1, max_length=8)]
Kernel = Literal[1, 3, 5, 7]
Pixels = Annotated[int, Field(ge=1, le=8192)]
_OF_DIFFUSERS = frozenset({"_diffusers_version", "_name_or_path", "_use_default_values"})


class UNet2DConditionModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        "_class_name": "UNet2DConditionModel",
        # Each of these asks for an input beside the prompt, which this pipeline does not have.
        "attention_type": "default",
        "class_embeddings_concat": False,
        "time_embedding_type": "positional",
    }
    NOTES: ClassVar[frozenset[str]] = _OF_DIFFUSERS | {"addition_embed_type_num_heads"}

    sample_size: Pixels
    in_channels: Width
    out_channels: Width
    block_out_channels: PerLevel
    down_block_types: Annotated[list[Literal["CrossAttnDownBlock2D", "DownBlock2D"]], Field(min_length=1, max_length=8)]
    up_block_types: Annotated[list[Literal["CrossAttnUpBlock2D", "UpBlock2D"]], Field(min_length=1, max_length=8)]
    layers_per_block: Layers | Annotated[list[Layers], Field(max_length=8)]
    cross_attention_dim: Width | PerLevel
    attention_head_dim: Width | PerLevel
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = "UNetMidBlock2DCrossAttn"
    mid_block_only_cross_attention: bool | None = None
    mid_block_scale_factor: Positive = 1
    transformer_layers_per_block: Layers | Annotated[list[Layers], Field(max_length=8)] = 1
    reverse_transformer_layers_per_block: None = None
    only_cross_attention: bool | Annotated[list[bool], Field(max_length=8)] = False
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    cross_attention_norm: None = None
    num_attention_heads: None = None
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Field(ge=0, le=1)] = 0
    downsample_padding: Literal[0, 1] = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Share = 1e-5
    dropout: Share = 0.0
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Positive = 1.0
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_cond_proj_dim: Width | None = None
    class_embed_type: None = None
    num_class_embeds: None = None
    projection_class_embeddings_input_dim: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    addition_embed_type: None = None
    addition_time_embed_dim: None = None

    @model_validator(mode="after")
    def _of_as_many_levels(self) -> UNet2DConditionModel:
        """Whatever is given for each level is given for all of them."""
        _check_levels(
            len(self.block_out_channels),
            *(self.down_block_types, self.up_block_types, self.layers_per_block, self.cross_attention_dim),
            *(self.attention_head_dim, self.transformer_layers_per_block, self.only_cross_attention),
        )
        return self

    @property
    def least_tensors(self) -> int:
        levels = len(self.block_out_channels)
        layers = _each(self.layers_per_block, levels)
        transformers = _each(self.transformer_layers_per_block, levels)
        attends = ["CrossAttn" in kind for kind in self.down_block_types]
        return sum(
            layer * (10 + 20 * transformer * attention)
            for layer, transformer, attention in zip(layers, transformers, attends, strict=False)
        )

    def edges(self) -> dict[str, Shape]:
        first, kernel = self.block_out_channels[0], self.conv_in_kernel
        return {
            "conv_in.weight": (first, self.in_channels, kernel, kernel),
            "conv_out.weight": (self.out_channels, first, self.conv_out_kernel, self.conv_out_kernel),
        }


_OLD_ATTENTION_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class AutoencoderKL(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": "AutoencoderKL"}
    NOTES: ClassVar[frozenset[str]] = _OF_DIFFUSERS

    block_out_channels: PerLevel
    latent_channels: Width
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[list[Literal["DownEncoderBlock2D"]], Field(min_length=1, max_length=8)]
    up_block_types: Annotated[list[Literal["UpDecoderBlock2D"]], Field(min_length=1, max_length=8)]
    layers_per_block: Layers = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    sample_size: Pixels = 32
    scaling_factor: Annotated[float, Field(gt=1e-3, lt=1e3)] = 0.18215
    shift_factor: None = None
    latents_mean: None = None
    latents_std: None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _of_as_many_levels(self) -> AutoencoderKL:
        _check_levels(len(self.block_out_channels), self.down_block_types, self.up_block_types)
        return self

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def least_tensors(self) -> int:
        return 8 * self.layers_per_block * len(self.block_out_channels)

    def edges(self) -> dict[str, Shape]:
        first, last = self.block_out_channels[0], self.block_out_channels[-1]
        return {
            "encoder.conv_in.weight": (first, 3, 3, 3),
            "decoder.conv_in.weight": (last, self.latent_channels, 3, 3),
            "decoder.conv_out.weight": (3, first, 3, 3),
        }

    @staticmethod
    def spelled(name: str) -> str:
        """Attention of the first releases had other names, which diffusers changes too when it loads."""
        for old, new in _OLD_ATTENTION_NAMES.items():
            name = name.replace(old, new)
        return name


class Scheduler(Configuration):
    """Any scheduler of Stable Diffusion: how a model was trained is read, how its authors sample is not."""

    ONLY: ClassVar[Mapping[str, object]] = {
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "flow_shift": 1.0,
    }
    NOTES: ClassVar[frozenset[str]] = frozenset(
        [
            "_class_name",
            "_diffusers_version",
            "_name_or_path",
            "_use_default_values",
            "algorithm_type",
            "clip_sample",
            "clip_sample_range",
            "disable_corrector",
            "dynamic_thresholding_ratio",
            "euler_at_final",
            "final_sigmas_type",
            "interpolation_type",
            "lambda_min_clipped",
            "lower_order_final",
            "noise_sampler_seed",
            "original_inference_steps",
            "predict_x0",
            "sample_max_value",
            "set_alpha_to_one",
            "skip_prk_steps",
            "solver_order",
            "solver_p",
            "solver_type",
            "steps_offset",
            "tensor_format",
            "thresholding",
            "time_shift_type",
            "timestep_scaling",
            "timestep_spacing",
            "timestep_type",
            "use_beta_sigmas",
            "use_exponential_sigmas",
            "use_karras_sigmas",
            "use_lu_lambdas",
            "variance_type",
        ]
    )

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    beta_schedule: Literal["scaled_linear", "linear"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    num_train_timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000


Library = Annotated[list[str | None], Field(min_length=2, max_length=2)]
"""Library and class of a part; both null if the model has none."""


class ModelIndex(Configuration):
    """The parts of a model. What is no table's business is not loaded, whatever class it names."""

    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}
    NOTES: ClassVar[frozenset[str]] = frozenset({"_diffusers_version", "_name_or_path", "requires_safety_checker"})

    unet: Library
    vae: Library
    text_encoder: Library
    tokenizer: Library
    scheduler: Library
    safety_checker: Library | None = None
    feature_extractor: Library | None = None
    image_encoder: Library | None = None


def _check_levels(levels: int, *given: object) -> None:
    """Raise ValueError for a list that has not one item for each level."""
    if any(isinstance(items, list) and len(items) != levels for items in given):
        raise ValueError(f"lists of {levels} items each, as many as block_out_channels has")


def _each(value: int | list[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else value


PARTS: dict[str, tuple[str, type[NetworkConfiguration]]] = {
    "unet": ("diffusion_pytorch_model", UNet2DConditionModel),
    "vae": ("diffusion_pytorch_model", AutoencoderKL),
    "text_encoder": ("model", CLIPTextModel),
}
"""Stem of the weight files and configuration of each part that has weights."""
