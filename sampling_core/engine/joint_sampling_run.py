"""Joint composition: the base and all regions take each step together, and share the canvas by weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine import joint_run as sampler
from prefect_regional_diffusion.sampling_core.engine import joint_state
from prefect_regional_diffusion.sampling_core.engine.cache_keys import Segment
from prefect_regional_diffusion.sampling_core.engine.guidance import EmbeddedGuidance, PromptKey
from prefect_regional_diffusion.sampling_core.engine.joint_run import Participant, Plan, State
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, add_noise
from prefect_regional_diffusion.sampling_core.noise.step_noise import NoNoise
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask


@dataclass(frozen=True)
class JointSamplingRun:
    """A run with joint composition. `noised` [b, c, h, w] is where the plan's schedule begins.

    `origin` is what `noised` was made of. Keys of states name it by that: its last bits depend on the processor.
    `windows` is what there is to say of the windows of its regions, `arrangement` what of prompts that share a row, one
    sentence each; `regions` is the number of regions.
    """

    plan: Plan
    noised: Latent
    origin: tuple[InitialNoise, Latent]
    windows: tuple[str, ...] = ()
    arrangement: tuple[str, ...] = ()
    regions: int = 0

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def base_only_steps(self) -> int:
        return self.plan.base_only_steps

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        return self.plan.prompts

    @property
    def adapters(self) -> tuple[tuple[str, AdapterKeys], ...]:
        return self.plan.adapters

    def initial_state(self) -> State:
        return sampler.start(self.plan, self.noised)

    def steps_done(self, state: State) -> int:
        return state.step

    def step(self, state: State) -> RunStep[State]:
        return sampler.advance(self.plan, state)

    def final_latents(self, state: State) -> Latent:
        return state.x

    def predicted_clean(self, previous: State, state: State) -> Latent:
        """The line through both states, extrapolated to sigma 0: x is linear in sigma while denoised is constant."""
        t, s = (self.plan.sigma_schedule[point.step].sigma for point in (previous, state))
        return state.x if t == s else torch.lerp(state.x, previous.x, -s / (t - s))

    def to_tensors(self, state: State) -> dict[str, Tensor]:
        return joint_state.to_tensors(self.plan, state)

    def specs(self, step: int) -> dict[str, TensorSpec]:
        return joint_state.specs(self.plan, self.noised.shape, step)

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> State:
        return joint_state.from_tensors(self.plan, self.noised.shape, tensors)

    def warnings(self) -> list[str]:
        sentences: list[str] = []
        if self._steps_without_base() == self.steps:
            sentences.append(
                "prompt: the regions cover the canvas from the first step, so the base prompt is never used"
            )
        drawn = {i for step in range(self.steps) for i in self.plan.phase(step).drawn}
        # A soft edge alone can lose every cell to a neighbour whose sampler carries another noise.
        sentences += [
            f"regions.{i - 1}: other regions or the base have all of it, so it is never drawn"
            for i in range(1, self.regions + 1)
            if i not in drawn
        ]
        return sentences

    def savings(self) -> list[str]:
        sentences: list[str] = []
        hidden = self._steps_without_base()
        if hidden:
            sentences.append(
                f"in {hidden} of {self.steps} steps the regions cover the canvas: the base is not evaluated"
            )
        participants = self.plan.participants
        unguided = [
            p.name
            for p in participants
            if not isinstance(p.guidance, EmbeddedGuidance) and len(p.guidance.prompts) == 1
        ]
        if unguided:
            sentences.append(f"guidance is off (cfg 1), so there are no negative rows: {', '.join(unguided)}")
        return [*sentences, *self.arrangement, *(f"window of {sentence}" for sentence in self.windows)]

    def _steps_without_base(self) -> int:
        return sum(0 not in self.plan.phase(step).drawn for step in range(self.steps))

    def segments(self) -> list[Segment]:
        """One for each stretch of steps with the same participants, weights and windows; the first one also has the
        initial latent and what all share."""
        plan = self.plan
        protected = None if plan.inpaint is None else plan.inpaint.weight
        beginning = (self.origin, plan.sigma_schedule, plan.levels, protected)
        segments: list[Segment] = []
        for first in plan.changes:
            active = [_determinants(i, p, weight, first) for i, (p, weight) in plan.active(first).items()]
            draws_noise = any(p.solver.order == 0 for p, _ in plan.active(first).values())
            noise, phase = plan.noise if draws_noise else None, plan.phase(first)
            reset = sorted(phase.reset_history) if phase.first == first else []
            segments.append(Segment(first, [active, noise, reset if segments else beginning]))
        return segments

    def with_init_latent(self, clean: Latent) -> JointSamplingRun:
        plan, noise = self.plan, self.origin[0]
        noise_latent = noise.draw()
        inpaint = None if plan.inpaint is None else plan.inpaint._replace(clean=clean, noise=noise_latent)
        noised = add_noise(clean, noise_latent, plan.sigma_schedule[0], plan.levels)
        return replace(self, plan=replace(plan, inpaint=inpaint), noised=noised, origin=(noise, clean))

    def noiseless(self) -> JointSamplingRun:
        empty, inpaint = self.noised[:, :0], self.plan.inpaint
        origin = (self.origin[0], self.origin[1][:, :0])
        if inpaint is not None:
            inpaint = inpaint._replace(clean=inpaint.clean[:, :0], noise=inpaint.noise[:, :0])
        return replace(
            self, plan=replace(self.plan, noise=NoNoise(empty.shape), inpaint=inpaint), noised=empty, origin=origin
        )


def _determinants(index: int, participant: Participant, weight: Mask, step: int) -> tuple[object, ...]:
    """What of a participant determines the states after a step (0-based)."""
    guidance, window = participant.view(step)
    return (index, guidance, participant.solver, weight, *([] if window is None else [window]))
