"""All that is computed of a job without loading weights: its masks, its plan, its cost, its mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob, resolve
from prefect_regional_diffusion.sampling_core.masks.rasterize import to_lattice
from prefect_regional_diffusion.sampling_core.models.family import PARTS, Checkpoint
from prefect_regional_diffusion.sampling_core.models.lora_file import LORA_PARTS
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.planning.compile import Cost, compose, cost, warnings
from prefect_regional_diffusion.sampling_core.planning.control_fit import described as described_controls
from prefect_regional_diffusion.sampling_core.planning.control_fit import fit_controls
from prefect_regional_diffusion.sampling_core.planning.control_pictures import pixel_digests
from prefect_regional_diffusion.sampling_core.planning.image_prompt_fit import (
    described_image_prompts,
    fit_image_prompts,
)
from prefect_regional_diffusion.sampling_core.planning.lora_fit import described, fit_loras
from prefect_regional_diffusion.sampling_core.planning.model_fit import fit_to_models
from prefect_regional_diffusion.sampling_core.planning.prompt_advice import prompt_warnings
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.planning.unencoded import Unencoded, unencoded
from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.tasks.inputs.limits import check_evaluations, check_limits
from prefect_regional_diffusion.tasks.inputs.size_limits import check_latents, check_size
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.job_inputs import JobInputs, canvas_of, read_inputs


@dataclass(frozen=True)
class Prepared:
    """A job that passed all checks, and its run. `job_hash` names what it draws.

    The run of a job with an init image begins with zeros, until the image is encoded (`SamplingRun.with_init_latent`).
    """

    job: RenderJob
    resolved: ResolvedJob
    job_hash: str
    inputs: JobInputs
    run: SamplingRun[Any]
    cost: Cost
    prompts: Unencoded
    """Shapes of the run's prompts."""

    @property
    def folder(self) -> Checkpoint:
        """The job's own model."""
        return self.inputs.folders[self.resolved.base.model]

    def savings(self) -> list[str]:
        return savings(self.run, self.cost)

    def loras(self) -> list[str]:
        return described(self.inputs.loras)

    def controls(self) -> list[str]:
        return described_controls(self.resolved, self.inputs.controls)

    def image_prompts(self) -> list[str]:
        return described_image_prompts(self.inputs.image_prompts.files)

    def warnings(self) -> list[str]:
        job_warnings = warnings(self.resolved, self.run, self.folder.facts.trained_pixels)
        return [
            *job_warnings,
            *self.inputs.warnings,
            *prompt_warnings(self.resolved, self.run.prompts, self.inputs.folders),
        ]

    def memory_bytes(self) -> int:
        """A rough estimate of the peak: weights, and the larger of one forward and the decoding."""
        machine = settings()
        working_numbers = self.folder.working_numbers(canvas_of(self.resolved), self.cost.most_rows)
        cells = math.prod(empty_latent(self.resolved, self.folder).shape[2:])
        controls = self.inputs.controls
        control_numbers = max(
            (control.working_numbers(cells, self.cost.most_rows) for control in controls.values()), default=0
        )
        placements = {name: machine.placement(model.facts) for name, model in self.inputs.folders.items()}
        weights = sum(
            model.part_bytes(part, placements[name]) for name, model in self.inputs.folders.items() for part in PARTS
        )
        weights += sum(lora.part_bytes(part) for lora in self.inputs.loras.values() for part in LORA_PARTS)
        weights += sum(file.weight_bytes(placements[model]) for (model, _), file in controls.items())
        return weights + (working_numbers + control_numbers) * machine.torch_dtype(self.folder.facts).itemsize


def prepare(job: RenderJob, inputs_of: Callable[[ResolvedJob], JobInputs] = read_inputs) -> Prepared:
    """Check a job against its files and its model folders. Raises BadInput, FileError or ModelError.

    `inputs_of` gives the inputs; those of another job on the same canvas will do.
    """
    settings().check()
    resolved = resolve(job)
    check_limits(job, resolved)
    check_size(job, resolved)
    inputs = inputs_of(resolved)
    folder = inputs.folders[resolved.base.model]
    resolved = fit_loras(fit_to_models(resolved, inputs.facts), inputs.loras)
    resolved = with_pictures(resolved, inputs, inputs.tensors)
    resolved = fit_image_prompts(resolved, inputs.image_prompts.files, inputs.digests)
    # The inputs may have been read for a job with fewer pictures.
    check_latents(resolved, folder.facts.vae_scale_factor, folder.facts.latent_channels)
    run = build_run(resolved, inputs.folders, inputs.tensors, empty_latent(resolved, folder))
    # A job with more evaluations is refused, so no more are counted.
    prompts = {key: unencoded(inputs.prompt_specs(key), inputs.facts[key.model].repeatable) for key in run.prompts}
    run_cost = cost(run, settings().max_forward_rows, settings().max_evaluations, prompts)
    check_evaluations("job", run_cost.evaluations)
    return Prepared(job, resolved, job_hash(resolved, inputs.digests), inputs, run, run_cost, prompts)


def with_pictures(job: ResolvedJob, inputs: JobInputs, tensors: Mapping[str, Tensor]) -> ResolvedJob:
    """The job with its controls identified by content, their pictures by the pixels in `tensors`. Raises BadInput."""
    return fit_controls(job, inputs.controls, pixel_digests(job, tensors, inputs.digests))


def empty_latent(job: ResolvedJob, folder: Checkpoint) -> Latent:
    """The latent [b, c, h, w] of a job that starts from noise alone."""
    facts = folder.facts
    rows, columns = job.height // facts.vae_scale_factor, job.width // facts.vae_scale_factor
    return torch.zeros(job.batch_size, facts.latent_channels, rows, columns)


def build_run(
    job: ResolvedJob, folders: Mapping[str, Checkpoint], inputs: Mapping[str, Tensor], clean: Latent
) -> SamplingRun[Any]:
    """The run of a job, from masks and pictures (`inputs`) and the latent that it starts with."""
    masks = [inputs[f"{i}"] for i in range(len(job.masks))]
    protected = inputs.get("protected")
    lattice = None if protected is None else to_lattice(protected, folders[job.base.model].facts.vae_scale_factor)
    levels = {name: folder.noise_schedule(canvas_of(job), job.steps) for name, folder in folders.items()}
    return compose(job, levels, clean, masks, lattice)
