"""A masked pass: one sampler over a stretch of its schedule, as the original nodes call it.

Inside, x lives in model space; a pass takes and returns a *boundary latent* [b, c, h, w], which for
flow models is x / (1 - sigma) and for all others x itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.comfyui.masks import composite, noise_mask
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import NodePass
from prefect_regional_diffusion.sampling_core.engine.guidance import Request
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, add_noise, initial_noise
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, NoNoise, Shape
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import (
    DenoisedPrediction,
    DenoiseRequest,
    Noise,
    Solver,
    StepContext,
)
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import Seen
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, LatentMask


class PassState(NamedTuple):
    """A pass after `step` steps: x in model space, and the first prediction of the last step."""

    step: int
    x: Latent
    solver: Any
    denoised: Latent


@dataclass(frozen=True)
class MaskedPass:
    """A pass on latents of a shape [b, c, h, w]: its noise is drawn once for all of its steps.

    Latents without channels are only counted, and get no noise.
    """

    node_pass: NodePass
    shape: Shape

    @cached_property
    def sigma_schedule(self) -> tuple[Level, ...]:
        return self.node_pass.sigma_schedule

    @cached_property
    def solver(self) -> Solver[Any]:
        return self.node_pass.solver

    @cached_property
    def noise(self) -> Latent:
        """The noise that is added at the start; zeros for none."""
        call = self.node_pass.call
        seed_noise = InitialNoise(call.seed, self.shape, call.batch_index) if call.add_noise else None
        initial = call.noise or seed_noise
        return torch.zeros(self.shape) if initial is None or self.shape[1] == 0 else initial.draw()

    @cached_property
    def mask(self) -> LatentMask | None:
        """[b, 1, h, w], 1 where the latent may change; without one it all may."""
        mask, (batch, _, rows, columns) = self.node_pass.call.mask, self.shape
        return None if mask is None else noise_mask(mask, (batch, 1, rows, columns))

    @cached_property
    def step_noise(self) -> Noise:
        """The noise of stochastic steps."""
        if self.noise.numel() == 0:
            return NoNoise(self.shape)
        return ComfyNoise(self.shape, self.node_pass.call.seed, self.solver.draws, *self.node_pass.path)

    @cached_property
    def outside_noise(self) -> Latent:
        """The noise that the latent outside of the mask has at every level."""
        # DDIM as ComfyUI has it: Euler's method that re-noises the outside with the next seed's noise.
        return (
            initial_noise(self.node_pass.call.seed + 1, self.shape) if self.node_pass.sampler == "ddim" else self.noise
        )

    @cached_property
    def unchanged(self) -> bool:
        """Whether the mask is empty, so that no prediction changes the latent."""
        return self.mask is not None and not bool(self.mask.any())

    def initial_state(self, latent: Latent) -> PassState:
        """The state before the first step, from the boundary latent [b, c, h, w]."""
        x = add_noise(latent, self.noise, self.sigma_schedule[0], self.node_pass.levels)
        return PassState(0, x, self.solver.init(x), x)

    def advance(self, state: PassState, latent: Latent) -> RunStep[PassState]:
        """The next step of a pass that began with the boundary latent; adaptive solvers take all steps at once."""
        predictions: list[Latent] = []
        ctx = StepContext(self.sigma_schedule, state.step, self.node_pass.levels, self.step_noise)
        solver_step = self.solver.step(state.x, state.solver, ctx)
        try:
            request = next(solver_step)
            while True:
                if self.unchanged and not request.unconditional:
                    prediction = DenoisedPrediction(latent)
                else:
                    guided_request = Request(self._mask_input(request, latent), self.node_pass.call.config.guidance)
                    prediction = self._mask_output((yield {0: guided_request})[0], latent)
                predictions.append(prediction.denoised)
                request = solver_step.send(prediction)
        except StopIteration as stop:
            x, memory = stop.value
        if isinstance(memory, Seen):
            return PassState(len(self.sigma_schedule) - 1, x, memory, memory.denoised if predictions else x)
        return PassState(state.step + 1, x, memory, predictions[0])

    def result(self, state: PassState, latent: Latent) -> Latent:
        """The pass' boundary latent after its last step, composited over the one that it began with."""
        output = state.denoised if self.node_pass.last_prediction else self._boundary(state.x)
        if not self.node_pass.keeps_outside:
            return output
        return composite(latent, output, 0, 0, self.node_pass.call.mask)

    def _mask_input(self, request: DenoiseRequest, latent: Latent) -> DenoiseRequest:
        """The request with x outside the mask replaced by the latent, noised to the request's level."""
        if self.mask is None:
            return request
        outside = request.level.alpha * latent + request.level.sigma * self.outside_noise
        return request._replace(x=request.x * self.mask + outside * (1 - self.mask))

    def _mask_output(self, prediction: DenoisedPrediction, latent: Latent) -> DenoisedPrediction:
        """The prediction with the latent itself outside the mask. The unconditional half stays as it is."""
        if self.mask is None:
            return prediction
        return prediction._replace(denoised=prediction.denoised * self.mask + latent * (1 - self.mask))

    def _boundary(self, x: Latent) -> Latent:
        """The sampler's x after the last step."""
        last = self.sigma_schedule[-1]
        # ComfyUI divides by 1 - sigma, also at sigma 1, where nothing of the latent is left.
        return x if last.alpha == 1 else x / torch.tensor(last.alpha)
