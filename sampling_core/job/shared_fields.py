"""The fields of a job and of its regions, before they are compared with each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from prefect_regional_diffusion.sampling_core.job.comfyui_node import UNTOUCHED, Node
from prefect_regional_diffusion.sampling_core.job.fields import Frozen, Guidance, Number, Seed, Text, Whole, at
from prefect_regional_diffusion.sampling_core.job.mask_shapes import Shape
from prefect_regional_diffusion.sampling_core.names import (
    CompositionName,
    Fit,
    OverlapRule,
    SamplerName,
    SchedulerName,
    StepNoiseName,
    VariationMethod,
)

MOST_REGIONS = 64


class Region(Frozen):
    """A part of the canvas with its own prompt. What is left empty is taken from the job."""

    model_config = ConfigDict(title="Region")
    name: Text = Field(
        "", max_length=80, title="Name", description="For people; changes no picture", json_schema_extra=at(1)
    )
    prompt: Text = Field(title="Prompt", description="What this region shows", json_schema_extra=at(2))
    negative_prompt: Text | None = Field(
        None, title="Negative prompt", description="Empty: the job's", json_schema_extra=at(3)
    )
    mask: Shape = Field(title="Mask", description="Where the region is", json_schema_extra=at(4))
    sampler: SamplerName | None = Field(None, title="Sampler", description="Empty: the job's", json_schema_extra=at(5))
    cfg: Guidance | None = Field(None, title="Guidance (cfg)", description="Empty: the job's", json_schema_extra=at(6))
    weight: Number = Field(
        1.0,
        ge=0,
        le=100,
        title="Weight",
        description="Share where regions overlap. 0: beneath the others",
        json_schema_extra=at(7),
    )
    feather: Whole = Field(
        0, ge=0, le=512, title="Feather", description="Pixels over which the edge fades", json_schema_extra=at(8)
    )
    grow: Whole = Field(
        0, ge=0, le=512, title="Grow", description="Pixels by which the mask grows first", json_schema_extra=at(9)
    )
    scheduler: SchedulerName | None = Field(
        None,
        title="Scheduler",
        description="Empty: the job's. Sequential composition only",
        json_schema_extra=at(10),
    )
    sigma_factor: Number = Field(
        1.0,
        gt=0,
        le=10,
        title="Sigma factor",
        description="Multiplies the region's sigmas. Sequential composition only",
        json_schema_extra=at(11),
    )
    variation_seed: Seed = Field(
        0,
        title="Variation seed",
        description="Of the noise that is mixed in",
        json_schema_extra=at(12),
    )
    variation_strength: Number = Field(
        0.0,
        ge=0,
        le=1,
        title="Variation strength",
        description="Share of that noise inside the region",
        json_schema_extra=at(13),
    )
    variation_method: VariationMethod = Field("linear", title="Variation method", json_schema_extra=at(14))
    model: Text | None = Field(
        None,
        min_length=1,
        title="Model",
        description="Empty: the job's. A folder whose latents are the same kind",
        json_schema_extra=at(15),
    )
    start_at_step: Annotated[Whole, Field(ge=0, le=999)] | None = Field(
        None,
        title="Start at step",
        description="Steps that are done when the region enters. Empty: the base-only steps. Joint composition only",
        json_schema_extra=at(16),
    )
    end_at_step: Annotated[Whole, Field(ge=1, le=1001)] | None = Field(
        None,
        title="End at step",
        description="Steps that are done when the region leaves. Empty: never. Joint composition only",
        json_schema_extra=at(17),
    )


class JobFields(Frozen):
    """The fields of a RenderJob, each right in itself; whether they go together, `composing` says."""

    model: Text = Field(
        "embedded",
        min_length=1,
        title="Model",
        description="`embedded`, or the folder of a diffusers Stable Diffusion model",
        json_schema_extra=at(1),
    )
    prompt: Text = Field(
        title="Prompt", description="What the canvas shows outside the regions", json_schema_extra=at(2)
    )
    negative_prompt: Text = Field("", title="Negative prompt", json_schema_extra=at(3))
    width: Whole = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Width",
        description="Pixels, a multiple of 8",
        json_schema_extra=at(4),
    )
    height: Whole = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Height",
        description="Pixels, a multiple of 8",
        json_schema_extra=at(5),
    )
    seed: Seed = Field(
        0,
        title="Seed",
        description="Same seed, same picture. Forms in a browser are exact up to 2**53",
        json_schema_extra=at(6),
    )
    steps: Whole = Field(20, ge=1, le=1000, title="Steps", description="Sampling steps", json_schema_extra=at(7))
    base_only_steps: Annotated[Whole, Field(ge=0, le=999)] | None = Field(
        None,
        title="Base-only steps",
        description="First steps without regions. Empty: 1, of RegionalSampler 2",
        json_schema_extra=at(8),
    )
    denoise: Number = Field(
        1.0, gt=0, le=1, title="Denoise", description="1 starts from pure noise", json_schema_extra=at(9)
    )
    sampler: SamplerName = Field("dpmpp_2m", title="Sampler", json_schema_extra=at(10))
    scheduler: SchedulerName = Field(
        "karras", title="Scheduler", description="How noise levels are spaced", json_schema_extra=at(11)
    )
    cfg: Guidance = Field(
        1.5, title="Guidance (cfg)", description="How strictly prompts are followed", json_schema_extra=at(12)
    )
    composition: CompositionName = Field(
        "joint",
        title="Composition",
        description="joint: every region takes every step at once; sequential: what an original node does",
        json_schema_extra=at(13),
    )
    regions: tuple[Region, ...] = Field((), max_length=MOST_REGIONS, title="Regions", json_schema_extra=at(14))
    batch_size: Whole = Field(
        1, ge=1, le=16, title="Batch size", description="Pictures, each from noise of its own", json_schema_extra=at(15)
    )
    batch_index: tuple[Annotated[Whole, Field(ge=0, le=15)], ...] = Field(
        (),
        max_length=16,
        title="Batch index",
        description="Which pictures of the batch to draw, from 0. Empty: all",
        json_schema_extra=at(16),
    )
    overlap: OverlapRule = Field(
        "weight",
        title="Overlap",
        description="weight: regions share where they overlap; order: later ones lie over earlier ones",
        json_schema_extra=at(17),
    )
    noise: StepNoiseName = Field(
        "keyed",
        title="Step noise",
        description="Of samplers that draw noise. keyed: by seed, picture and step; comfyui: as ComfyUI draws it",
        json_schema_extra=at(18),
    )
    start_image: Text | None = Field(
        None,
        min_length=1,
        title="Start image",
        description="Image file to start from, with denoise below 1. Empty: start from noise alone",
        json_schema_extra=at(19),
    )
    start_fit: Fit = Field(
        "crop",
        title="Start fit",
        description="Where the start image's shape is not the canvas': crop: its middle fills the canvas; "
        "contain: all of it is seen, its edges fill the rest; stretch: it is distorted",
        json_schema_extra=at(20),
    )
    protect: tuple[Shape, ...] = Field(
        (),
        max_length=16,
        title="Protect",
        description="Masks of what stays as it is in the start image, to the last bit",
        json_schema_extra=at(21),
    )
    node: Node = Field(UNTOUCHED, description="For sequential composition", json_schema_extra=at(22))
