"""Noise as a function of its seed; the process-wide random state is never touched."""

from __future__ import annotations

import math

import torch

from sampling_core._types import Latent
from sampling_core.levels import Level, ModelLevels


def initial_noise(seed: int, shape: tuple[int, int, int, int]) -> Latent:
    """Unit noise [b, c, h, w], float32, drawn on the CPU as ComfyUI does, so that its seeds carry over."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def add_noise(clean: Latent, noise: Latent, start: Level, levels: ModelLevels) -> Latent:
    """The latent a run starts from: `alpha * clean + sigma * noise`.

    A model trained on betas never saw pure noise at its last level but noise of total variance
    `1 + sigma^2`, hence the slightly larger factor there.
    """
    at_top = levels.prediction != "flow" and (
        start.sigma > levels.largest or math.isclose(start.sigma, levels.largest, rel_tol=1e-5)
    )
    strength = math.sqrt(1 + start.sigma**2) if at_top else start.sigma
    return start.alpha * clean + strength * noise
