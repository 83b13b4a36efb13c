"""Denoisers that know the answer, and small plans around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, ExpertGuidance, PromptKey
from prefect_regional_diffusion.sampling_core.engine.joint_run import Participant, Plan, PlanPhase, State, start
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, shape_of
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, span
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS

EMBEDDINGS = {name: torch.zeros(1, 1, 1) for name in ("", "base", "region")}


Embeddings = Mapping[str, Tensor] | Mapping[str | None, Tensor]
"""Embeddings [1, t, d] by prompt."""


def conditionings(embeddings: Embeddings, model: str = "") -> dict[PromptKey, Conditioning]:
    """What a model is told of prompts, from an embedding [1, t, d] of each."""
    return {PromptKey(model, prompt): Conditioning({PROMPT_EMBEDS: one}) for prompt, one in embeddings.items()}


class GaussianData:
    """The exact denoiser when clean latents are normal with mean `mean` and deviation `spread`, cell by cell."""

    def __init__(self, spread: float = 0.5, mean: float = 0.3) -> None:
        self.spread, self.mean = spread, mean

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        alpha = torch.tensor([level.alpha for level in levels], dtype=x.dtype)[:, None, None, None]
        sigma = torch.tensor([level.sigma for level in levels], dtype=x.dtype)[:, None, None, None]
        variance = (alpha * self.spread) ** 2 + sigma**2
        return self.mean + alpha * self.spread**2 / variance * (x - alpha * self.mean)

    def solution(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """The exact end of the probability-flow ODE from level t to s: deviations scale, standard scores stay."""
        scale = ((s.alpha * self.spread) ** 2 + s.sigma**2) / ((t.alpha * self.spread) ** 2 + t.sigma**2)
        return s.alpha * self.mean + (x - t.alpha * self.mean) * scale**0.5


class PromptColors:
    """A denoiser that answers each row with the constant its embedding holds, and remembers what it was asked.

    A row of several prompts is answered with the sum of their constants times their weights.
    """

    def __init__(self) -> None:
        self.forwards: list[tuple[int, tuple[Level, ...]]] = []

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        self.forwards.append((len(x), tuple(levels)))
        answers = conditioning[PROMPT_EMBEDS][:, :1, :1, None].expand_as(x).clone()
        for answer, row in zip(answers, adapters, strict=False):
            if row.prompts:
                answer[:] = sum(p.conditioning[PROMPT_EMBEDS][0, 0, 0] * p.weight for p in row.prompts)
        return answers


def single(solver: str, sigma_schedule: Sequence[Level], x: Tensor, cfg: float = 1.0) -> Plan:
    """One participant over the whole canvas of x."""
    everywhere = torch.ones(x.shape[-2:])
    base = Participant("base", ClassifierFreeGuidance(cfg, "base", ""), SOLVERS[solver])
    noise = ComfyNoise(shape_of(x), 0, 3, *span(tuple(sigma_schedule)))
    return Plan(tuple(sigma_schedule), (PlanPhase(0, (everywhere,)),), (base,), levels_of(sigma_schedule), noise)


def plan_of(run: SamplingRun[Any]) -> Plan:
    """The plan of a run of joint composition."""
    assert isinstance(run, JointSamplingRun)
    return run.plan


def prompt_of(participant: Participant) -> str | None:
    """A participant's positive prompt, of a model that is one network."""
    assert not isinstance(participant.guidance, ExpertGuidance)
    return participant.guidance.positive


def run_of_plan(plan: Plan, x: Tensor) -> JointSamplingRun:
    """The run from a noised latent x."""
    return JointSamplingRun(plan, x, (InitialNoise(0, shape_of(x)), x))


def using(network: Any, embeddings: Embeddings | None = None, model: str = "") -> EvaluationContext:
    """A network under one model's name, with an embedding for every prompt that tests use."""
    return EvaluationContext({model: network}, conditionings(embeddings or EMBEDDINGS, model))


def levels_of(sigma_schedule: Sequence[Level]) -> ModelLevels:
    """Levels of a model that the schedule could belong to."""
    return beta_levels("epsilon") if sigma_schedule[0].alpha == 1 else flow_levels()


def finish(plan: Plan, x: Tensor, network: object, embeddings: dict[str, Tensor] | None = None) -> State:
    """The state after all steps."""
    state = start(plan, x)
    for reached, _ in iterate(run_of_plan(plan, x), state, using(network, embeddings)):
        state = reached
    return state
