"""RenderJob -> ResolvedJob: inherited fields are filled in, and fields that change no picture get one value.

Inheritance is decided here and nowhere else: planning, hashing, cost, warnings and summaries take the result, so a
field that is not resolved here can change no picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    MaskGridNKSamplersAdvanced,
    Node,
    RegionalSampler,
    tiles_of,
)
from prefect_regional_diffusion.sampling_core.job.resolved_controls import (
    ControlPicture,
    ControlUse,
    ResolvedControl,
    resolved_controls,
)
from prefect_regional_diffusion.sampling_core.job.resolved_image_prompts import (
    ImagePromptUse,
    ResolvedImagePrompt,
    resolved_image_prompts,
)
from prefect_regional_diffusion.sampling_core.job.resolved_loras import LoraUse, ResolvedLora, resolved_loras
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.job.resolved_node import base_factor, resolved_denoise, resolved_node
from prefect_regional_diffusion.sampling_core.job.resolved_refiner import ResolvedRefiner, resolved_refiner
from prefect_regional_diffusion.sampling_core.job.resolved_sizes import ResolvedSizes, resolved_sizes
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow, resolved_window
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region
from prefect_regional_diffusion.sampling_core.names import (
    CFG_PP,
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
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import embedding_names


class ParticipantSettings(NamedTuple):
    """The settings that the base or a region is sampled with.

    `negative_prompt` is empty where guidance is off, as it is not evaluated there; what was written is then
    `idle_negative`, for messages. None is no prompt at all. With `embedded`, `cfg` is an input of the model, which
    evaluates one prompt; with `size_conditioned`, sizes are inputs of it; if it `shares_rows`, several prompts can
    have one row of it. These follow from the model: see `fit_to_models`.
    """

    prompt: str
    negative_prompt: str | None
    sampler: SamplerName
    scheduler: SchedulerName
    cfg: float
    model: str
    sigma_factor: float
    loras: tuple[ResolvedLora, ...] = ()
    controls: tuple[ResolvedControl, ...] = ()
    image_prompts: tuple[ResolvedImagePrompt, ...] = ()
    idle_negative: str = ""
    prompt_syntax: PromptSyntax = "plain"
    embedded: bool = False
    size_conditioned: bool = False
    shares_rows: bool = True

    @property
    def embedding_names(self) -> list[str]:
        """The textual inversions that its prompts name."""
        names = [embedding_names(prompt, self.prompt_syntax) for prompt in (self.prompt, self.negative_prompt)]
        return sorted({*names[0], *names[1]})


class ResolvedRegion(NamedTuple):
    """A region with nothing left to look up in its job.

    It takes part in the steps after `start_at_step`, up to `end_at_step` (None: the last one). `weight` is 1 or 0 where
    only whether it is 0 matters. Without variation its seed and method are 0 and linear. `name` is for people,
    `inherited` has the fields that were left empty, so that messages name the field in which somebody wrote the value.
    """

    name: str
    settings: ParticipantSettings
    mask: ResolvedMask
    weight: float
    start_at_step: int
    end_at_step: int | None
    variation_seed: int
    variation_strength: float
    variation_method: VariationMethod
    inherited: frozenset[str]
    window: ResolvedWindow | None = None
    """What the network sees of the canvas when it is asked for the region; None: all of it."""


@dataclass(frozen=True, kw_only=True)
class ResolvedJob:
    """A job with nothing left to look up.

    `batch_size` is the number of pictures that are drawn; `batch_index`, if it is not empty, says which of the batch
    they are. `base_only_steps` is 0 without regions, and `denoise` is 1 wherever the whole schedule is taken. With
    joint and attention composition, `node` is as in a job that does not speak of one.
    """

    composition: CompositionName
    width: int
    height: int
    seed: int
    steps: int
    base_only_steps: int
    denoise: float
    base: ParticipantSettings
    regions: tuple[ResolvedRegion, ...]
    batch_size: int
    batch_index: tuple[int, ...]
    overlap: OverlapRule
    arrangement: ArrangementName
    noise: StepNoiseName
    init_image: str | None
    init_fit: Fit
    protect: tuple[ResolvedMask, ...]
    node: Node
    sizes: ResolvedSizes | None
    refiner: ResolvedRefiner | None

    @property
    def participants(self) -> tuple[ParticipantSettings, ...]:
        """The settings of the base and of each region."""
        return (self.base, *(region.settings for region in self.regions))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are used, the base's first."""
        refiner = () if self.refiner is None else (self.refiner.model,)
        return tuple(dict.fromkeys((*(participant.model for participant in self.participants), *refiner)))

    @property
    def models_by_field(self) -> dict[str, str]:
        """Models by the field that names them; regions that inherit their model have no entry."""
        regions_by_index = {i: region for i, region in enumerate(self.regions) if "model" not in region.inherited}
        refiner = {} if self.refiner is None else {"refiner.model": self.refiner.model}
        return (
            {"model": self.base.model}
            | {f"regions.{i}.model": regions_by_index[i].settings.model for i in regions_by_index}
            | refiner
        )

    @property
    def lora_uses(self) -> tuple[LoraUse, ...]:
        """Each LoRA with each model that it is added to, once."""
        uses = [
            LoraUse(lora.field, participant.model, lora.file)
            for participant in self.participants
            for lora in participant.loras
        ]
        return tuple(dict.fromkeys(uses))

    @property
    def controls(self) -> tuple[ResolvedControl, ...]:
        """The controls of all participants, each once."""
        return tuple(dict.fromkeys(control for participant in self.participants for control in participant.controls))

    @property
    def control_uses(self) -> tuple[ControlUse, ...]:
        """Each ControlNet or T2I-Adapter with each model that it steers, once."""
        uses = [
            ControlUse(f"{control.field}.file", participant.model, control.file)
            for participant in self.participants
            for control in participant.controls
        ]
        return tuple(dict.fromkeys(uses))

    @property
    def control_pictures(self) -> tuple[ControlPicture, ...]:
        """The pictures that controls read, each once."""
        return tuple(dict.fromkeys(control.picture for control in self.controls))

    @property
    def image_prompt_uses(self) -> tuple[ImagePromptUse, ...]:
        """Each image prompt with each model that it is for, once."""
        uses = [
            prompt.used_by(participant.model)
            for participant in self.participants
            for prompt in participant.image_prompts
        ]
        return tuple(dict.fromkeys(uses))

    @property
    def masks(self) -> tuple[ResolvedMask, ...]:
        """The masks that the composition needs: one per region, or the tile of a grid of masks."""
        if self.composition == "sequential" and isinstance(self.node, MaskGridNKSamplersAdvanced):
            rows, columns = tiles_of(self.node)
            return (ResolvedMask("node.tile", self.node.tile, (self.height // rows, self.width // columns)),)
        return tuple(region.mask for region in self.regions)

    @property
    def image_files(self) -> dict[str, str]:
        """Image files that are read, the init image first: field -> path."""
        start = {} if self.init_image is None else {"init_image": self.init_image}
        files = [mask.file for mask in (*self.masks, *self.protect)]
        controls = {f"{control.field}.image": control.picture.path for control in self.controls}
        prompts = {f"{use.field}.image": use.image for use in self.image_prompt_uses}
        return start | {file.field: file.path for file in files if file is not None} | controls | prompts


def resolve(job: JobFields) -> ResolvedJob:
    """Fill in what is inherited. The job's fields must go together, as those of a RenderJob do."""
    canvas = (job.height, job.width)
    return ResolvedJob(
        composition=job.composition if job.regions or job.composition != "attention" else "joint",
        width=job.width,
        height=job.height,
        seed=job.seed,
        steps=job.steps,
        base_only_steps=base_only_steps(job) if job.regions else 0,
        denoise=resolved_denoise(job.denoise),
        base=_settings(job, None),
        regions=tuple(_region(job, i, region) for i, region in enumerate(job.regions)),
        batch_size=len(job.batch_index) or job.batch_size,
        batch_index=job.batch_index,
        overlap=job.overlap if len(job.regions) > 1 else "weight",
        arrangement=job.arrangement if job.regions else "rows",
        noise=job.noise,
        init_image=job.init_image,
        init_fit=job.init_fit,
        protect=tuple(ResolvedMask(f"protect.{i}", shape, canvas) for i, shape in enumerate(job.protect)),
        node=resolved_node(job),
        sizes=resolved_sizes(job),
        refiner=resolved_refiner(job),
    )


def base_only_steps(job: JobFields) -> int:
    """First steps of the base alone. Left empty, their number depends on the composition."""
    if job.base_only_steps is not None:
        return job.base_only_steps
    default = 1 if job.composition == "joint" else 0
    if job.composition == "sequential" and isinstance(job.node, RegionalSampler):
        default = 2
    return min(default, job.steps - 1)


def _region(job: JobFields, index: int, region: Region) -> ResolvedRegion:
    has_variation = region.variation_strength > 0
    is_only_region = len(job.regions) == 1
    shares_by_weight = job.composition != "sequential" and job.overlap == "weight" and not is_only_region
    return ResolvedRegion(
        name=region.name or f"region {index + 1}",
        settings=_settings(job, region, index),
        mask=ResolvedMask(f"regions.{index}.mask", region.mask, (job.height, job.width), region.grow, region.feather),
        # Weight 0 lies under the other regions, whatever the rule among those.
        weight=region.weight if shares_by_weight else float(region.weight > 0 or is_only_region),
        start_at_step=base_only_steps(job) if region.start_at_step is None else region.start_at_step,
        end_at_step=region.end_at_step,
        variation_seed=region.variation_seed if has_variation else 0,
        variation_strength=region.variation_strength,
        variation_method=region.variation_method if has_variation else "linear",
        inherited=frozenset(name for name in (*_INHERITED, "start_at_step", "window") if getattr(region, name) is None),
        window=resolved_window(job, region),
    )


def _settings(job: JobFields, region: Region | None, index: int = 0) -> ParticipantSettings:
    """The settings that a region (None: the base) is sampled with."""
    inherited_values: dict[str, Any] = {}
    for name in _INHERITED:
        region_value = None if region is None else getattr(region, name)
        inherited_values[name] = getattr(job, name) if region_value is None else region_value
    settings = ParticipantSettings(
        **inherited_values,
        prompt=job.prompt if region is None else region.prompt,
        sigma_factor=base_factor(job.node) if region is None else region.sigma_factor,
        prompt_syntax=job.prompt_syntax,
        loras=resolved_loras(job, region, index),
        controls=resolved_controls(job, region, index),
        image_prompts=resolved_image_prompts(job, region, index),
    )
    sampler = settings.sampler
    if job.composition != "sequential":
        # ComfyUI's suffix for where the noise is drawn. The Impact Pack treats some of these samplers in another way.
        sampler = cast("SamplerName", sampler.removesuffix("_gpu"))
    # With guidance off, the negative prompt is evaluated for CFG++ alone.
    negative_is_unused = math.isclose(settings.cfg, 1.0) and sampler not in CFG_PP
    if negative_is_unused:
        settings = settings._replace(negative_prompt="", idle_negative=settings.negative_prompt or "")
    return settings._replace(sampler=sampler)


_INHERITED = ("negative_prompt", "sampler", "scheduler", "cfg", "model")
"""Fields that a region takes from its job where it leaves them empty."""
