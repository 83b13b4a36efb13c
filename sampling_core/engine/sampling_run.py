"""What is sampled, whatever it is made of: a run of steps from noise to finished latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.cache_keys import Segment
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

S = TypeVar("S")


@runtime_checkable
class SamplingRun(Protocol[S]):
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

    @property
    def adapters(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """What rows have beside their prompts, each with the model that it is for; once, in order of first use."""
        ...

    def initial_state(self) -> S:
        """The state before the first step."""
        ...

    def steps_done(self, state: S) -> int:
        """Steps that are finished in a state."""
        ...

    def step(self, state: S) -> RunStep[S]:
        """The next step of a run that is not finished; whoever drives it answers, together with other runs or not."""
        ...

    def final_latents(self, state: S) -> Latent:
        """The latents [b, c, h, w] to decode, once all steps are done."""
        ...

    def predicted_clean(self, previous: S, state: S) -> Latent:
        """A guess at the finished latents [b, c, h, w], from two states that follow each other: for previews."""
        ...

    def warnings(self) -> list[str]:
        """What a person should know of the picture before it is drawn, one sentence each."""
        ...

    def savings(self) -> list[str]:
        """What is not evaluated, and why, one sentence each."""
        ...

    def segments(self) -> list[Segment]:
        """What determines the states, in the order in which it comes to matter."""
        ...

    def with_init_latent(self, clean: Latent) -> SamplingRun[S]:
        """The same run from another latent [b, c, h, w] of this one's shape."""
        ...

    def noiseless(self) -> SamplingRun[S]:
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
