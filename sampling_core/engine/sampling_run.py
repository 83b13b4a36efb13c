"""Composition: how the base and the regions share a canvas. A run is a row of steps, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine import joint_run as sampler
from prefect_regional_diffusion.sampling_core.engine import joint_state as written
from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks
from prefect_regional_diffusion.sampling_core.engine.cache_keys import Chapter
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.engine.joint_run import Plan, State
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise
from prefect_regional_diffusion.sampling_core.noise.step_noise import NoNoise
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

S = TypeVar("S")


@runtime_checkable
class Composition(Protocol[S]):
    """What tasks need to know of a run. Its states are NamedTuples of tensors, written by `to_tensors`."""

    @property
    def steps(self) -> int:
        """Steps that can be saved one by one."""
        ...

    @property
    def base_only_steps(self) -> int:
        """How many of them, the first ones, are of the base alone."""
        ...

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        """The distinct prompts that are evaluated, in order of first use."""
        ...

    def begin(self) -> S:
        """The state before the first step."""
        ...

    def done(self, state: S) -> int:
        """Steps that are finished in a state."""
        ...

    def iterate(self, state: S, using: Networks, until: int | None = None) -> Iterator[tuple[S, Count]]:
        """Every state after `state` up to step `until` (default: the end), with what each step cost."""
        ...

    def pictures(self, state: S) -> Latent:
        """The latents [b, c, h, w] to decode, once all steps are done."""
        ...

    def expected(self, before: S, state: S) -> Latent:
        """A guess at the finished latents [b, c, h, w], from two states that follow each other: for previews."""
        ...

    def chapters(self) -> list[Chapter]:
        """What determines the states, in the order in which it comes to matter."""
        ...

    def noiseless(self) -> Composition[S]:
        """The same run on latents without channels, and without what its steps draw: it costs the same. For counting.

        Its tensors are empty, and still have the pictures, rows and columns of this run's: so counting is no work.
        It shares nothing with this run that sampling changes, so it may be driven while this one is sampled.
        """
        ...

    def to_tensors(self, state: S) -> dict[str, Tensor]:
        """A state as named tensors."""
        ...

    def specs(self, step: int) -> dict[str, TensorSpec]:
        """What `to_tensors` writes of the state after `step` steps. Raises ValueError if there is none."""
        ...

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> S:
        """The state that `to_tensors` wrote. Raises KeyError or ValueError if it is none of this run's."""
        ...


@dataclass(frozen=True)
class Joint:
    """Joint composition: all take each step together. `noised` [b, c, h, w] is where the plan's ladder begins.

    `origin` is what `noised` was made of. Keys of states name it by that: its last bits depend on the processor.
    """

    plan: Plan
    noised: Latent
    origin: tuple[InitialNoise, Latent]

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def base_only_steps(self) -> int:
        return self.plan.base_only_steps

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        return self.plan.prompts

    def begin(self) -> State:
        return sampler.start(self.plan, self.noised)

    def done(self, state: State) -> int:
        return state.step

    def iterate(self, state: State, using: Networks, until: int | None = None) -> Iterator[tuple[State, Count]]:
        return sampler.iterate(self.plan, state, using, until)

    def pictures(self, state: State) -> Latent:
        return state.x

    def expected(self, before: State, state: State) -> Latent:
        """The line through both states, followed to where no noise is left: x is linear in sigma if denoised stays."""
        t, s = (self.plan.ladder[one.step].sigma for one in (before, state))
        return state.x if t == s else torch.lerp(state.x, before.x, -s / (t - s))

    def to_tensors(self, state: State) -> dict[str, Tensor]:
        return written.to_tensors(self.plan, state)

    def specs(self, step: int) -> dict[str, TensorSpec]:
        return written.specs(self.plan, self.noised.shape, step)

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> State:
        return written.from_tensors(self.plan, self.noised.shape, tensors)

    def chapters(self) -> list[Chapter]:
        """One for each stage: who takes part. Before them, where the run begins and all that it shares."""
        plan = self.plan
        protected = None if plan.known is None else plan.known.weight
        beginning = (self.origin, plan.ladder, plan.levels, protected)
        told: list[Chapter] = []
        for stage in plan.stages:
            active = [(i, p.guidance, p.solver, weight) for i, (p, weight) in plan.active(stage.first).items()]
            draws_noise = any(p.solver.order == 0 for p, _ in plan.active(stage.first).values())
            noise = plan.noise if draws_noise else None
            told.append(Chapter(stage.first, [active, noise, sorted(stage.forget) if told else beginning]))
        return told

    def noiseless(self) -> Joint:
        empty, known = self.noised[:, :0], self.plan.known
        origin = (self.origin[0], self.origin[1][:, :0])
        if known is not None:
            known = known._replace(clean=known.clean[:, :0], noise=known.noise[:, :0])
        return replace(
            self, plan=replace(self.plan, noise=NoNoise(empty.shape), known=known), noised=empty, origin=origin
        )
