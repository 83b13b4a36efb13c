"""Evaluations without a network: for counting."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext, without_adapters
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Denoiser
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.planning.unencoded import Unencoded, told_in_counting
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class NoNetwork:
    """Answers every query with its own input: the loop runs, and nothing is computed."""

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        return x


def counting_context(
    prompts: Collection[PromptKey],
    encodings: Unencoded,
    max_forward_rows: int | None = None,
    network: Denoiser | None = None,
) -> EvaluationContext:
    """What these prompts are evaluated with when rows and forwards are counted; `network` stands for every model.

    Without `encodings`, all prompts are of one length.
    """
    stand_in = NoNetwork() if network is None else network
    models = {key.model for key in prompts}
    conditionings = told_in_counting(prompts, encodings)
    return EvaluationContext(
        dict.fromkeys(models, stand_in), conditionings, max_forward_rows, adapters=without_adapters
    )
