"""Sequential composition: a node's passes one after the other, taken one step at a time, for the five originals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.known_faults import known_faults
from prefect_regional_diffusion.sampling_core.comfyui.masked_pass import MaskedPass, PassState
from prefect_regional_diffusion.sampling_core.comfyui.masks import composite
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import NodePass
from prefect_regional_diffusion.sampling_core.engine.cache_keys import Segment
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys
from prefect_regional_diffusion.sampling_core.noise.initial import shape_of
from prefect_regional_diffusion.sampling_core.solvers.base import check_memory, memory_specs
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec, check_specs
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

LatentBox = tuple[slice, slice]
"""Rows and columns of latent cells."""


class SequentialState(NamedTuple):
    """A node on its way. Together with its passes it is all that is needed to go on.

    Latents are boundary latents [b, c, h, w]: `latent` is what the open pass began with, `before_call` what its
    call began with, `forks` [n * b, c, h, w] the pictures that are finished. `inside` is the open pass
    after some of its steps; None before the first.
    """

    number: int
    """Finished passes."""
    latent: Latent
    before_call: Latent
    forks: Latent
    inside: PassState | None


@dataclass(frozen=True)
class SequentialSamplingRun:
    """A node on a latent: `clean` [b, c, h, w] is the boundary latent that it begins with.

    With `cells` each of them is a picture: the first latent with that cell of the sampled one.
    """

    passes: tuple[NodePass, ...]
    clean: Latent
    base_only_steps: int = 0
    cells: tuple[LatentBox, ...] = ()

    @cached_property
    def _pass_ends(self) -> list[int]:
        """Steps done after each pass."""
        return list(accumulate(node_pass.steps for node_pass in self.passes))

    @property
    def steps(self) -> int:
        """Sampler steps of all passes together."""
        return self._pass_ends[-1] if self._pass_ends else 0

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        """The distinct prompts that the run evaluates, in order of first use."""
        prompt_keys = (key for node_pass in self.passes for key in node_pass.call.config.guidance.prompt_keys)
        return tuple(dict.fromkeys(prompt_keys))

    @property
    def adapters(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """What rows have beside their prompts, with the model that it is for."""
        used = (one.call.config.guidance for one in self.passes)
        return tuple(dict.fromkeys(one for guidance in used for one in guidance.models))

    def initial_state(self) -> SequentialState:
        """The state before the first step."""
        return self._open_next(SequentialState(0, self.clean, self.clean, self.clean[:0], None))

    def steps_done(self, state: SequentialState) -> int:
        """Steps that are finished."""
        return self._steps_before(state.number) + (state.inside.step if state.inside else 0)

    def step(self, state: SequentialState) -> RunStep[SequentialState]:
        """The next step of the open pass; after its last one the next pass is open."""
        masked_pass = self._masked_pass(state.number)
        inside = masked_pass.initial_state(state.latent) if state.inside is None else state.inside
        new_inside = yield from masked_pass.advance(inside, state.latent)
        if new_inside.step < len(masked_pass.sigma_schedule) - 1:
            return state._replace(inside=new_inside)
        return self._close_pass(state, masked_pass.result(new_inside, state.latent))

    @cached_property
    def _masked_pass(self) -> Callable[[int], MaskedPass]:
        """A pass by its number, with its noise and mask: made once for all of its steps, and not kept for longer."""
        return lru_cache(maxsize=1)(lambda number: MaskedPass(self.passes[number], shape_of(self.clean)))

    def _close_pass(self, state: SequentialState, result: Latent) -> SequentialState:
        """The state after the open pass, whose result may be a call's, and the call's a picture's."""
        call, forks = self.passes[state.number].call, state.forks
        if self._ends_call(state.number):
            result = composite(state.before_call, result, 0, 0, call.mask) if call.restore else result
            forks = torch.cat([forks, result]) if call.fork else forks
        return self._open_next(SequentialState(state.number + 1, result, state.before_call, forks, None))

    def _open_next(self, state: SequentialState) -> SequentialState:
        """The state before the next pass: a call begins with what is there, a fork with the node's own latent."""
        if state.number == len(self.passes):
            return state
        node_pass = self.passes[state.number]
        if node_pass.opens:
            start = self.clean if node_pass.call.fork else state.latent
            state = state._replace(latent=start, before_call=start)
        if node_pass.steps > 0:
            return state
        # A range before the schedule's first step: it adds its noise and takes no step.
        masked_pass = self._masked_pass(state.number)
        return self._close_pass(state, masked_pass.result(masked_pass.initial_state(state.latent), state.latent))

    def final_latents(self, state: SequentialState) -> Latent:
        """The finished boundary latents [n * b, c, h, w]; of a grid cell by cell from the top left."""
        if len(state.forks):
            return state.forks
        return torch.cat([self._cell(state.latent, box) for box in self.cells]) if self.cells else state.latent

    def _cell(self, sampled: Latent, box: LatentBox) -> Latent:
        """The first latent with one cell of the first sampled picture, as the original has it."""
        fork = self.clean.clone()
        fork[0, :, *box] = sampled[0, :, *box]
        return fork

    def predicted_clean(self, previous: SequentialState, state: SequentialState) -> Latent:
        """The open pass' last prediction; between passes the latent as it is, noise and all."""
        return state.latent if state.inside is None else state.inside.denoised

    def with_init_latent(self, clean: Latent) -> SequentialSamplingRun:
        """The same run from another latent [b, c, h, w] of this one's shape."""
        return replace(self, clean=clean)

    def noiseless(self) -> SequentialSamplingRun:
        """This run as it is if a sampler's steps depend on what it draws."""
        if any(node_pass.sampler == "dpm_adaptive" for node_pass in self.passes):
            return replace(self)
        return replace(self, clean=self.clean[:, :0])

    def warnings(self) -> list[str]:
        return known_faults(self.passes, shape_of(self.clean), cut=bool(self.cells))

    def savings(self) -> list[str]:
        masks = [node_pass.call.mask for node_pass in self.passes]
        empty = sum(mask is not None and not bool(mask.any()) for mask in masks)
        return [f"{empty} of {len(masks)} passes have an empty mask: they are not evaluated"] if empty else []

    def segments(self) -> list[Segment]:
        """The base-only pass, if there is one, and all others."""
        first, *others = self.passes or (None,)
        # The state after a pass has the next one opened, which for some changes the latent.
        is_opened = others and others[0].opens and not others[0].call.fork and others[0].steps > 0
        if first is None or not self.base_only_steps or not is_opened:
            return [Segment(0, [self.clean, *self.passes])]
        return [Segment(0, [self.clean, first]), Segment(self.base_only_steps, others)]

    def to_tensors(self, state: SequentialState) -> dict[str, Tensor]:
        """Named tensors: `number`, `latent`, `before_call`, `forks`, and `inside.<field>` within a pass."""
        tensors = {"number": torch.tensor(state.number)} | {name: getattr(state, name) for name in _LATENTS}
        if state.inside is not None:
            tensors |= {"inside.step": torch.tensor(state.inside.step)}
            tensors |= {"inside.x": state.inside.x, "inside.denoised": state.inside.denoised}
            tensors |= {f"inside.solver.{name}": value for name, value in state.inside.solver._asdict().items()}
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}

    def specs(self, step: int) -> dict[str, TensorSpec]:
        """What `to_tensors` writes of the state after `step` steps. Raises ValueError if there is none."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} of {self.steps}")
        number = bisect_right(self._pass_ends, step)
        batch, *cells = self.clean.shape
        forks = sum(node_pass.call.fork and self._ends_call(i) for i, node_pass in enumerate(self.passes[:number]))
        counter, x = TensorSpec(torch.int64, ()), TensorSpec(self.clean.dtype, (batch, *cells))
        tensor_specs = {
            "number": counter,
            "latent": x,
            "before_call": x,
            "forks": x._replace(shape=(forks * batch, *cells)),
        }
        if step == self._steps_before(number):
            return tensor_specs
        fresh = self.passes[number].solver.init(torch.empty(batch, *cells, dtype=self.clean.dtype, device="meta"))
        memory = {f"inside.solver.{name}": spec for name, spec in memory_specs(fresh).items()}
        return tensor_specs | {"inside.step": counter, "inside.x": x, "inside.denoised": x} | memory

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> SequentialState:
        """The state that `to_tensors` wrote. Raises KeyError or ValueError if it is none of this run's."""
        number, steps_taken = int(tensors["number"]), int(tensors["inside.step"]) if "inside.step" in tensors else 0
        if not 0 <= number <= len(self.passes) or steps_taken < 0:
            raise ValueError(f"pass {number}, step {steps_taken}")
        step = self._steps_before(number) + steps_taken
        check_specs(tensors, self.specs(step))
        if number != bisect_right(self._pass_ends, step):
            raise ValueError(f"step {steps_taken} of pass {number}")
        state = SequentialState(number, *(tensors[name] for name in _LATENTS), inside=None)
        if not steps_taken:
            return state
        x, node_pass = tensors["inside.x"], self.passes[number]
        fresh: Any = self.passes[number].solver.init(x)
        memory = type(fresh)(**{name: tensors[f"inside.solver.{name}"] for name in fresh._fields})
        check_memory(memory, node_pass.sigma_schedule, steps_taken, node_pass.levels)
        return state._replace(inside=PassState(steps_taken, x, memory, tensors["inside.denoised"]))

    def _steps_before(self, number: int) -> int:
        """Steps done when so many passes are finished."""
        return self._pass_ends[number - 1] if number else 0

    def _ends_call(self, number: int) -> bool:
        """Whether a pass is the last one of its call."""
        return number + 1 == len(self.passes) or self.passes[number + 1].opens


_LATENTS = ("latent", "before_call", "forks")
