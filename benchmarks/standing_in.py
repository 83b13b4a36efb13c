"""A network that takes its time without the processor, as one on a GPU does; prompts and pictures that cost nothing.

In processes of `benchmarks.orchestration` and `benchmarks.fleet` they stand in the place of Stable Diffusion's
(`stand_ins/sitecustomize.py`): what a run takes beyond its forwards is then the orchestration's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion import StableDiffusion
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Pixels, Rows

FORWARD_SECONDS = 0.2

LOAD_SECONDS = "STAND_IN_LOAD_SECONDS"
"""Environment variable: how long a denoiser takes to load [0]."""


class SleepingNetwork:
    """A forward takes FORWARD_SECONDS, whatever it is asked."""

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        time.sleep(FORWARD_SECONDS)
        return 0.5 * x


class StandInTextEncoder:
    """Prompts cost nothing."""

    def __init__(self, checkpoint: StableDiffusion) -> None:
        self._specs = checkpoint.conditioning_specs

    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        shapes = {name: [size for size in spec.shape if isinstance(size, int)] for name, spec in self._specs.items()}
        return Conditioning({name: torch.full(shape, float(len(prompt or ""))) for name, shape in shapes.items()})


class StandInAutoencoder:
    """Pictures cost nothing: they are grey."""

    def __init__(self, checkpoint: StableDiffusion) -> None:
        self._cell = checkpoint.facts.vae_scale_factor

    def decode(self, latent: Latent) -> Pixels:
        grey = (latent.mean(dim=1).clamp(-1, 1) * 127 + 128).repeat_interleave(self._cell, 1)
        return grey.repeat_interleave(self._cell, 2)[..., None].expand(-1, -1, -1, 3).byte()


def put_in_place_of(family: type[StableDiffusion]) -> None:
    """Have a family's models load these parts, and none of its files."""
    parts: dict[str, Callable[[StableDiffusion], object]] = {
        "load_text_encoder": StandInTextEncoder,
        "load_denoiser": _load_denoiser,
        "load_autoencoder": StandInAutoencoder,
    }
    for name, part in parts.items():
        setattr(family, name, _loading(part))
    family.check_weights = lambda self, part: None  # it would import the libraries


def _load_denoiser(_checkpoint: StableDiffusion) -> SleepingNetwork:
    time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
    return SleepingNetwork()


def _loading(part: Callable[[StableDiffusion], object]) -> Callable[[StableDiffusion, object], object]:
    return lambda checkpoint, _placement: part(checkpoint)
