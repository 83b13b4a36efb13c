"""A model with all its parts loaded at once, and the run of a job on it: for measurements in one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.family import (
    Autoencoder,
    Canvas,
    Checkpoint,
    Denoiser,
    TextEncoder,
)
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.model_fit import fit_to_models
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks

ON_CPU = Placement()


class WholeModel(NamedTuple):
    """A checkpoint, and what was loaded of it."""

    checkpoint: Checkpoint
    text_encoder: TextEncoder
    denoiser: Denoiser
    autoencoder: Autoencoder


def load_whole(checkpoint: Checkpoint, placement: Placement = ON_CPU) -> WholeModel:
    """All parts. Raises ModelError."""
    return WholeModel(
        checkpoint,
        checkpoint.load_text_encoder(placement),
        checkpoint.load_denoiser(placement),
        checkpoint.load_autoencoder(placement),
    )


def embedded_model() -> WholeModel:
    """The small model that comes with the package."""
    return load_whole(open_folder("embedded"))


def run_on(checkpoint: Checkpoint, job: RenderJob) -> SamplingRun[Any]:
    """The run of a job without images, of one picture."""
    facts, canvas = checkpoint.facts, Canvas(job.width, job.height)
    cell = facts.vae_scale_factor
    empty = torch.zeros(1, facts.latent_channels, canvas.height // cell, canvas.width // cell)
    resolved = fit_to_models(resolve(job), {job.model: facts})
    return compose(
        resolved, {job.model: checkpoint.noise_schedule(canvas, job.steps)}, empty, region_masks(resolved, {}, cell)
    )
