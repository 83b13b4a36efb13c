"""The fields of a job and of its regions, as a person fills them in: what is left empty is still empty here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from prefect_regional_diffusion.sampling_core.job.adapters import (
    MOST_CONTROLS,
    MOST_IMAGE_PROMPTS,
    MOST_LORAS,
    Control,
    ImagePrompt,
    Lora,
)
from prefect_regional_diffusion.sampling_core.job.comfyui_node import DEFAULT_NODE, Node
from prefect_regional_diffusion.sampling_core.job.fields import (
    FrozenModel,
    GuidanceScale,
    Number,
    Seed,
    StrictInt,
    Text,
)
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MaskShape
from prefect_regional_diffusion.sampling_core.job.refiner import Refiner, SizeConditioning
from prefect_regional_diffusion.sampling_core.job.window import WindowField
from prefect_regional_diffusion.sampling_core.names import (
    ArrangementName,
    CompositionName,
    Fit,
    OverlapRule,
    PromptSyntax,
    SamplerName,
    SchedulerName,
    StepNoiseName,
    VariationMethod,
)

MOST_REGIONS = 64
OF_THE_MODEL = ("width", "height", "steps", "cfg", "sampler", "scheduler")
"""Fields of a job that have its model's defaults if they are left out. The defaults here are the embedded model's."""


def _no_default(schema: dict[str, Any]) -> None:
    """Forms send the defaults that they show; for fields with the model's defaults they show none, and send none."""
    schema.pop("default", None)


class Region(FrozenModel):
    """A part of the canvas with its own prompt. What is left empty is taken from the job."""

    model_config = ConfigDict(title="Region")
    name: Text = Field(default="", max_length=80, title="Name", description="For people; changes no picture")
    prompt: Text = Field(title="Prompt", description="What this region shows")
    negative_prompt: Text | None = Field(default=None, title="Negative prompt", description="Empty: the job's")
    mask: MaskShape = Field(title="Mask", description="Where the region is")
    sampler: SamplerName | None = Field(default=None, title="Sampler", description="Empty: the job's")
    cfg: GuidanceScale | None = Field(default=None, title="Guidance (cfg)", description="Empty: the job's")
    weight: Number = Field(
        default=1.0, ge=0, le=100, title="Weight", description="Share where regions overlap. 0: beneath the others"
    )
    feather: StrictInt = Field(default=0, ge=0, le=512, title="Feather", description="Pixels over which the edge fades")
    grow: StrictInt = Field(default=0, ge=0, le=512, title="Grow", description="Pixels by which the mask grows first")
    scheduler: SchedulerName | None = Field(
        default=None, title="Scheduler", description="Empty: the job's. Sequential composition only"
    )
    sigma_factor: Number = Field(
        default=1.0,
        gt=0,
        le=10,
        title="Sigma factor",
        description="Multiplies the region's sigmas. Sequential composition only",
    )
    variation_seed: Seed = Field(default=0, title="Variation seed", description="Of the noise that is mixed in")
    variation_strength: Number = Field(
        default=0.0, ge=0, le=1, title="Variation strength", description="Share of that noise inside the region"
    )
    variation_method: VariationMethod = Field(default="linear", title="Variation method")
    model: Text | None = Field(
        default=None,
        min_length=1,
        title="Model",
        description="Empty: the job's. A folder whose latents are the same kind",
    )
    loras: tuple[Lora, ...] | None = Field(
        default=None, max_length=MOST_LORAS, title="LoRAs", description="Empty: the job's. An empty list: none"
    )
    controls: tuple[Control, ...] | None = Field(
        default=None,
        max_length=MOST_CONTROLS,
        title="Controls",
        description="ControlNets and T2I-Adapters. Empty: the job's. An empty list: none",
    )
    image_prompts: tuple[ImagePrompt, ...] | None = Field(
        default=None,
        max_length=MOST_IMAGE_PROMPTS,
        title="Image prompts",
        description="Empty: the job's. An empty list: none",
    )
    start_at_step: Annotated[StrictInt, Field(ge=0, le=999)] | None = Field(
        default=None,
        title="Start at step",
        description="Steps that are done when the region enters. Empty: the base-only steps. Joint composition only",
    )
    end_at_step: Annotated[StrictInt, Field(ge=1, le=1001)] | None = Field(
        default=None,
        title="End at step",
        description="Steps that are done when the region leaves. Empty: never. Joint composition only",
    )
    window: WindowField | None = Field(
        default=None, title="Window", description="Empty: the job's. Joint composition only"
    )


class JobFields(FrozenModel):
    """The fields of a RenderJob, each valid by itself; `validation` checks whether they go together."""

    model: Text = Field(
        default="embedded",
        min_length=1,
        title="Model",
        description="`embedded`, a folder (diffusers), a .safetensors file, a card (.yaml), org/name (Hugging Face "
        "cache), or s3://bucket/name",
    )
    prompt: Text = Field(title="Prompt", description="What the canvas shows outside the regions")
    negative_prompt: Text = Field(default="", title="Negative prompt")
    prompt_syntax: PromptSyntax = Field(
        default="plain",
        title="Prompt syntax",
        description="How all prompts are written. plain: they are read as they stand; comfyui: (word:1.3) is a weight, "
        "embedding:NAME a textual inversion, and long prompts are read to their end; a1111: also [word] and BREAK",
    )
    width: StrictInt = Field(
        default=128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Width",
        description="Pixels, a multiple of 8. Empty: the model's",
        json_schema_extra=_no_default,
    )
    height: StrictInt = Field(
        default=128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Height",
        description="Pixels, a multiple of 8. Empty: the model's",
        json_schema_extra=_no_default,
    )
    seed: Seed = Field(
        default=0, title="Seed", description="Same seed, same picture. Forms in a browser are exact up to 2**53"
    )
    steps: StrictInt = Field(
        default=20,
        ge=1,
        le=1000,
        title="Steps",
        description="Sampling steps. Empty: what suits the model",
        json_schema_extra=_no_default,
    )
    base_only_steps: Annotated[StrictInt, Field(ge=0, le=999)] | None = Field(
        default=None,
        title="Base-only steps",
        description="First steps without regions. Empty: 1, with attention composition 0, of RegionalSampler 2",
    )
    denoise: Number = Field(default=1.0, gt=0, le=1, title="Denoise", description="1 starts from pure noise")
    sampler: SamplerName = Field(
        default="dpmpp_2m", title="Sampler", description="Empty: what suits the model", json_schema_extra=_no_default
    )
    scheduler: SchedulerName = Field(
        default="karras",
        title="Scheduler",
        description="How noise levels are spaced. Empty: what suits the model",
        json_schema_extra=_no_default,
    )
    cfg: GuidanceScale = Field(
        default=1.5,
        title="Guidance (cfg)",
        description="How strictly prompts are followed. Empty: what suits the model",
        json_schema_extra=_no_default,
    )
    composition: CompositionName = Field(
        default="joint",
        title="Composition",
        description="joint: every region takes every step at once, with settings of its own; attention: the prompts of "
        "all regions share one row, at the cost of one; sequential: what an original node does",
    )
    regions: tuple[Region, ...] = Field(default=(), max_length=MOST_REGIONS, title="Regions")
    loras: tuple[Lora, ...] = Field(
        default=(), max_length=MOST_LORAS, title="LoRAs", description="Of the canvas, and of regions without their own"
    )
    controls: tuple[Control, ...] = Field(
        default=(),
        max_length=MOST_CONTROLS,
        title="Controls",
        description="ControlNets and T2I-Adapters of the canvas, and of regions without their own",
    )
    image_prompts: tuple[ImagePrompt, ...] = Field(
        default=(),
        max_length=MOST_IMAGE_PROMPTS,
        title="Image prompts",
        description="Of the canvas, and of regions without their own",
    )
    batch_size: StrictInt = Field(
        default=1, ge=1, le=16, title="Batch size", description="Pictures, each from noise of its own"
    )
    batch_index: tuple[Annotated[StrictInt, Field(ge=0, le=15)], ...] = Field(
        default=(),
        max_length=16,
        title="Batch index",
        description="Which pictures of the batch to draw, from 0. Empty: all",
    )
    overlap: OverlapRule = Field(
        default="weight",
        title="Overlap",
        description="weight: regions share where they overlap; order: later ones lie over earlier ones",
    )
    window: WindowField = Field(
        default="canvas",
        title="Window",
        description="What the network sees when it evaluates a region. canvas: all of it; auto: the part around the "
        "region, where that saves enough; or such a part with a margin. Joint composition only",
    )
    arrangement: ArrangementName = Field(
        default="rows",
        title="Arrangement",
        description="rows: each region has a row of its own; attention: regions that differ in their prompts alone "
        "share one; auto: whichever of these is less work. Joint composition only",
    )
    noise: StepNoiseName = Field(
        default="per_step",
        title="Step noise",
        description="Of samplers that draw noise. per_step: by seed, picture and step; comfyui: as ComfyUI draws it",
    )
    init_image: Text | None = Field(
        default=None,
        min_length=1,
        title="Init image",
        description="Image file to start from, with denoise below 1. Empty: start from noise alone",
    )
    init_fit: Fit = Field(
        default="crop",
        title="Init fit",
        description="Where the init image's shape is not the canvas': crop: its middle fills the canvas; "
        "contain: all of it is seen, its edges fill the rest; stretch: it is distorted",
    )
    protect: tuple[MaskShape, ...] = Field(
        default=(),
        max_length=16,
        title="Protect",
        description="Masks of what stays as it is in the init image, to the last bit",
    )
    size_conditioning: SizeConditioning | None = Field(
        default=None,
        title="Size conditioning",
        description="Of models that take the original's size and crop as an input (Stable Diffusion XL)",
    )
    refiner: Refiner | None = Field(
        default=None, title="Refiner", description="A second model for the last steps. Joint composition only"
    )
    node: Node = Field(default=DEFAULT_NODE, title="Original node", description="For sequential composition")
