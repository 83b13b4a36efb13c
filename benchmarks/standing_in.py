"""The flows `render` and `shard` with a network that takes its time without the processor, as one on a GPU does.

`benchmarks.orchestration` deploys them: what a run takes beyond its forwards is then the orchestration's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.models.folder import ModelFolder
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Embedding, Latent, Pixels, RowEmbeddings, Rows
from prefect_regional_diffusion.tasks import load_model as loading

__all__ = ["FORWARD_SECONDS", "SleepingNetwork", "render", "shard"]

FORWARD_SECONDS = 0.2


class SleepingNetwork:
    """A forward takes FORWARD_SECONDS, whatever it is asked."""

    def __call__(self, x: Rows, levels: Sequence[Level], embeddings: RowEmbeddings) -> Rows:
        time.sleep(FORWARD_SECONDS)
        return 0.5 * x


class StandIn:
    """What the flows need of a model: prompts and pictures cost nothing."""

    def __init__(self, folder: ModelFolder, *_: Any) -> None:
        self.folder, self.network = folder, SleepingNetwork()

    embedding_shape = (1, 1, 1)

    def encode_prompts(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        return {prompt: torch.full((1, 1, 1), float(len(prompt))) for prompt in prompts}

    def decode(self, latent: Latent) -> Pixels:
        grey = latent.mean(dim=1).clamp(-1, 1) * 127 + 128
        cell = self.folder.cell
        return grey.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[..., None].expand(-1, -1, -1, 3).byte()


loading.load = StandIn  # pyright: ignore[reportAttributeAccessIssue] - it is a model to those who use it
