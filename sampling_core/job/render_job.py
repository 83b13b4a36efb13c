"""RenderJob: what a person asks for. The same model is the YAML file, the JSON file and the UI form."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from prefect_regional_diffusion.sampling_core.job.comfyui_node import UNTOUCHED, Node
from prefect_regional_diffusion.sampling_core.job.fields import (
    Frozen,
    Guidance,
    Number,
    SamplerName,
    SchedulerName,
    Seed,
    Text,
    Whole,
    at,
    refuse,
)
from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Image, Shape
from prefect_regional_diffusion.sampling_core.job.validation import check_composition, check_schedule
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Fit
from prefect_regional_diffusion.sampling_core.noise.initial import VariationMethod

MOST_REGIONS = 64


class DrawnMask(NamedTuple):
    """A mask before it is drawn: the field it comes from, its shape, and what is done to its edge, in pixels."""

    field: str
    shape: Shape
    grow: int = 0
    feather: int = 0


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


class RenderJob(Frozen):
    """One picture: a base prompt over the whole canvas and regions with prompts of their own."""

    model_config = ConfigDict(title="Render job")
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
    composition: Literal["joint", "sequential"] = Field(
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
    overlap: Literal["weight", "order"] = Field(
        "weight",
        title="Overlap",
        description="weight: regions share where they overlap; order: later ones lie over earlier ones",
        json_schema_extra=at(17),
    )
    noise: Literal["keyed", "comfyui"] = Field(
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

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RenderJob:
        check_composition(self)
        first, steps = self.base_only_steps, self.steps
        if self.regions and first is not None and first >= steps:
            raise refuse("base_only_steps", first, f"0 to {steps - 1} (less than steps)")
        check_schedule("denoise", steps, self.denoise)
        for index in self.batch_index:
            if index >= self.batch_size:
                raise refuse("batch_index", index, f"0 to {self.batch_size - 1} (less than batch_size)")
        return self

    @property
    def first_steps(self) -> int:
        """Steps of the base alone. Left empty, they are what suits the composition."""
        if self.base_only_steps is not None:
            return self.base_only_steps
        usual = 1 if self.composition == "joint" else 2 if self.node.name == "RegionalSampler" else 0
        return min(usual, self.steps - 1)

    @property
    def pictures(self) -> int:
        """Pictures that are drawn at once."""
        return len(self.batch_index) or self.batch_size

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are used, the job's own first."""
        return tuple(dict.fromkeys([self.model, *(region.model or self.model for region in self.regions)]))

    def drawn_masks(self) -> list[DrawnMask]:
        """What masks are made of: one per region, or the grid's tile."""
        if self.composition == "sequential" and self.node.name == "MaskGridNKSamplersAdvanced":
            return [DrawnMask("node.tile", self.node.tile)]
        return [
            DrawnMask(f"regions.{i}.mask", region.mask, region.grow, region.feather)
            for i, region in enumerate(self.regions)
        ]

    def image_files(self) -> dict[str, str]:
        """Image files that are read, the start image among them: field -> path."""
        files: dict[str, str] = {}
        if self.start_image is not None:
            files["start_image"] = self.start_image
        protect = [DrawnMask(f"protect.{i}", shape) for i, shape in enumerate(self.protect)]
        for field, shape, *_ in [*self.drawn_masks(), *protect]:
            match shape:
                case Image(image=path):
                    files[f"{field}.image"] = path
                case ColorMap(color_map=path):
                    files[f"{field}.color_map"] = path
                case _:
                    pass
        return files

    def settings_of(self, region: Region | None) -> tuple[str, float, str]:
        """Sampler, cfg and negative prompt of a region (None: of the base), inheritance resolved."""
        if region is None:
            return self.sampler, self.cfg, self.negative_prompt
        return (
            region.sampler or self.sampler,
            self.cfg if region.cfg is None else region.cfg,
            self.negative_prompt if region.negative_prompt is None else region.negative_prompt,
        )
