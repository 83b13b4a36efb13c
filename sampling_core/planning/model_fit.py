"""Fits a resolved job to the inputs of its models: what a model cannot do is refused, never ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefect_regional_diffusion.sampling_core.engine.guidance import (
    ClassifierFreeGuidance,
    EmbeddedGuidance,
    ExpertGuidance,
    Guidance,
)
from prefect_regional_diffusion.sampling_core.engine.prompt_map import merged
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_refiner import ResolvedRefiner
from prefect_regional_diffusion.sampling_core.job.resolved_sizes import ResolvedSizes
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.model_key import NO_ADAPTERS, AdapterKeys, LoraKey
from prefect_regional_diffusion.sampling_core.names import CFG_PP, PromptSyntax
from prefect_regional_diffusion.sampling_core.planning.arrangement import MemberShare
from prefect_regional_diffusion.sampling_core.planning.control_fit import control_keys
from prefect_regional_diffusion.sampling_core.planning.image_prompt_fit import image_prompt_keys
from prefect_regional_diffusion.sampling_core.planning.windows import fit_window


def fit_to_models(job: ResolvedJob, facts: Mapping[str, Facts]) -> ResolvedJob:
    """The job with its participants' inputs in the form that their models take. `facts` are by model.

    Fitting again changes nothing.

    Raises BadInput for a size, a composition, a dialect, a LoRA, a control, an image prompt, a negative prompt, a
    scale, a sampler or a window for which a model has no use.
    """
    for model in job.models:
        if job.sizes is not None and not facts[model].size_conditioned:
            family = facts[model].family
            raise BadInput("size_conditioning", _sizes_text(job.sizes), f"left out: sizes are no input of {family}")
        if job.composition == "attention" and not facts[model].takes_prompt_maps:
            allowed = f"joint: no two prompts share a row of {facts[model].family}"
            raise BadInput("composition", job.composition, allowed)
    for field, model in job.models_by_field.items():
        if facts[model].refiner and field != "refiner.model":
            raise BadInput(field, model, f"a model for all noise levels: {facts[model].family} goes into refiner.model")
    if job.arrangement == "attention" and not any(
        facts[settings.model].takes_prompt_maps for settings in job.participants
    ):
        allowed = f"rows or auto: no two prompts share a row of {facts[job.base.model].family}"
        raise BadInput("arrangement", job.arrangement, allowed)
    base = _fit_participant(job.base, facts, {name: name for name in _FIELDS})
    regions = tuple(
        region._replace(
            settings=_fit_participant(
                region.settings,
                facts,
                {name: name if name in region.inherited else f"regions.{i}.{name}" for name in _FIELDS},
            ),
            window=fit_window(job, i, facts),
        )
        for i, region in enumerate(job.regions)
    )
    refiner = None if job.refiner is None else _fit_refiner(job, job.refiner, facts)
    return replace(job, base=base, regions=regions, refiner=refiner)


_FIELDS = ("negative_prompt", "cfg", "sampler")


def _fit_participant(
    settings: ParticipantSettings, facts: Mapping[str, Facts], fields: Mapping[str, str]
) -> ParticipantSettings:
    """`fields` are those in which somebody wrote the values."""
    model_facts = facts[settings.model]
    _check_syntax(settings.prompt_syntax, model_facts)
    if settings.loras and not model_facts.takes_loras:
        raise BadInput(
            settings.loras[0].field, settings.loras[0].file, f"left out: {model_facts.family} takes no LoRAs"
        )
    if settings.controls and not model_facts.takes_controls:
        first = settings.controls[0]
        allowed = f"left out: {model_facts.family} takes no ControlNet and no T2I-Adapter"
        raise BadInput(f"{first.field}.file", first.file, allowed)
    if settings.image_prompts and not model_facts.takes_image_prompts:
        first = settings.image_prompts[0]
        raise BadInput(f"{first.field}.file", first.file, f"left out: {model_facts.family} takes no image prompts")
    settings = settings._replace(
        embedded=model_facts.guidance == "embedded",
        size_conditioned=model_facts.size_conditioned,
        shares_rows=model_facts.takes_prompt_maps,
    )
    if model_facts.guidance == "cfg":
        guided = settings.sampler in CFG_PP or not math.isclose(settings.cfg, 1.0)
        # ComfyUI and the web UI encode an empty prompt like any other.
        is_plain = settings.prompt_syntax == "plain"
        is_none = guided and is_plain and not settings.negative_prompt and model_facts.empty_negative == "none"
        return settings._replace(negative_prompt=None) if is_none else settings
    negative = settings.negative_prompt or settings.idle_negative
    if negative:
        raise BadInput(fields["negative_prompt"], negative, f"left out: {model_facts.family} takes no negative prompt")
    if settings.sampler in CFG_PP:
        raise BadInput(
            fields["sampler"], settings.sampler, f"a sampler without _cfg_pp: {model_facts.family} has one prediction"
        )
    if model_facts.guidance == "none" and not math.isclose(settings.cfg, 1.0):
        raise BadInput(fields["cfg"], settings.cfg, f"1: {model_facts.family} has no guidance")
    return settings


def _fit_refiner(job: ResolvedJob, refiner: ResolvedRefiner, facts: Mapping[str, Facts]) -> ResolvedRefiner:
    for model in job.models:
        if facts[model].guidance != "cfg":
            allowed = f"left out: {facts[model].family} is not guided by two rows"
            raise BadInput("refiner", refiner.model, allowed)
    model_facts = facts[refiner.model]
    _check_syntax(job.base.prompt_syntax, model_facts)
    return refiner._replace(
        size_conditioned=model_facts.size_conditioned,
        scored=model_facts.refiner,
        empty_negative=model_facts.empty_negative,
    )


def _check_syntax(syntax: PromptSyntax, model_facts: Facts) -> None:
    if syntax not in model_facts.prompt_syntaxes:
        syntaxes, family = " or ".join(model_facts.prompt_syntaxes), model_facts.family
        allowed = f"{syntaxes}: {family} reads prompts as they stand, without weights"
        raise BadInput("prompt_syntax", syntax, allowed)


def guidance_of(
    settings: ParticipantSettings, job: ResolvedJob, sigmas: Sequence[float], shares: Sequence[MemberShare] = ()
) -> Guidance:
    """How a participant of a job is guided. Its LoRAs, controls and image prompts are known by their content
    (`fit_loras`, `fit_controls`, `fit_image_prompts`); `sigmas` are those of the job's schedule, noisiest first.

    If it stands for several members that share its rows, `shares` has them all; `settings` are the first one's.

    Raises BadInput for a control, an image prompt or a refiner that acts in no step.
    """
    sizes = _size_conditioning(job) if settings.size_conditioned else None
    adapters = AdapterKeys(
        loras=tuple(LoraKey(lora.sha256, lora.strength, lora.text_strength) for lora in settings.loras),
        controls=control_keys(settings.controls, sigmas),
        image_prompts=image_prompt_keys(settings, sigmas),
    )
    positive, positive_map = settings.prompt, None
    negative, negative_map = settings.negative_prompt, None
    if shares:
        weights = [share.weight for share in shares]
        positive, positive_map = merged([share.settings.prompt for share in shares], weights)
        negative, negative_map = merged([share.settings.negative_prompt for share in shares], weights)
    if settings.embedded:
        return EmbeddedGuidance(
            settings.cfg,
            positive,
            settings.model,
            sizes,
            syntax=settings.prompt_syntax,
            adapters=adapters,
            positive_map=positive_map,
        )
    guidance = ClassifierFreeGuidance(
        settings.cfg,
        positive,
        negative,
        always_both=settings.sampler in CFG_PP,
        model=settings.model,
        sizes=sizes,
        syntax=settings.prompt_syntax,
        adapters=adapters,
        positive_map=positive_map,
        negative_map=negative_map,
    )
    return guidance if job.refiner is None else _with_refiner(guidance, job, job.refiner, sigmas)


def _with_refiner(
    guidance: ClassifierFreeGuidance, job: ResolvedJob, refiner: ResolvedRefiner, sigmas: Sequence[float]
) -> ExpertGuidance:
    """The same with another network in the last steps, without what is added to the first one."""
    steps = len(sigmas) - 1
    first = math.ceil(refiner.start * steps - 1e-9)
    if first >= steps:
        raise BadInput("refiner.start", refiner.start, f"at most {(steps - 1) / steps:g}: there are {steps} steps")
    is_none = refiner.empty_negative == "none" and guidance.syntax == "plain" and len(guidance.prompts) > 1
    empty = None if is_none else ""
    negative_map = guidance.negative_map
    if negative_map is not None:
        negative_map = replace(negative_map, prompts=tuple(prompt or empty for prompt in negative_map.prompts))
    sizes = _size_conditioning(job) if refiner.size_conditioned else None
    negative_sizes = sizes
    if sizes is not None and refiner.scored:
        negative_sizes = sizes._replace(aesthetic_score=refiner.negative_aesthetic_score)
        sizes = sizes._replace(aesthetic_score=refiner.aesthetic_score)
    lower = guidance._replace(
        negative=guidance.negative or empty,
        model=refiner.model,
        sizes=sizes,
        adapters=NO_ADAPTERS,
        negative_sizes=negative_sizes,
        negative_map=negative_map,
    )
    return ExpertGuidance(guidance, lower, sigmas[first])


def _size_conditioning(job: ResolvedJob) -> SizeConditioning:
    canvas = Canvas(job.width, job.height)
    if job.sizes is None:
        return SizeConditioning(canvas, canvas)
    original = Canvas(job.sizes.original_width, job.sizes.original_height)
    return SizeConditioning(canvas, original, job.sizes.crop_left, job.sizes.crop_top)


def _sizes_text(sizes: ResolvedSizes) -> str:
    return f"{sizes.original_width} x {sizes.original_height} from {sizes.crop_left}, {sizes.crop_top}"
