"""Many small runs drawn at once: for a tiny network, the rows of all of them are little more work than those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import advance_runs
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun

MOST_ROWS = 64
"""Larger forwards are no faster, row by row."""


@dataclass(frozen=True)
class Drawn:
    """What a run ends with, latents [b, c, h, w], and what it would have cost alone."""

    latents: Tensor
    count: Count


def drawn_together(runs: Sequence[SamplingRun[Any]], context: EvaluationContext) -> list[Drawn | Exception]:
    """Each run's end, or what it raised; their steps share forwards of the networks."""
    ways = [_Way(run, run.initial_state()) for run in runs]
    while steps := {number: way.step(context) for number, way in enumerate(ways) if way.goes_on}:
        for number, state in advance_runs(steps, context)[0].items():
            ways[number].state = state
    return [way.end() for way in ways]


@dataclass
class _Way:
    """A run that is being drawn."""

    run: SamplingRun[Any]
    state: Any
    count: Count = field(default_factory=Count)
    error: Exception | None = None

    @property
    def goes_on(self) -> bool:
        return self.error is None and self.run.steps_done(self.state) < self.run.steps

    def step(self, context: EvaluationContext) -> RunStep[Any]:
        """The run's next step, which counts what it asks. If it raises, the run ends, and no other one."""
        step, alone = self.run.step(self.state), _without_networks(context)
        try:
            asked = next(step)
            while True:
                self.count = self.count.plus(evaluate(list(asked.values()), alone)[1])
                asked = step.send((yield asked))
        except StopIteration as stop:
            return stop.value
        except Exception as error:  # noqa: BLE001 - told as this run's end
            self.error = error
            return self.state

    def end(self) -> Drawn | Exception:
        return self.error or Drawn(self.run.final_latents(self.state), self.count)


def _without_networks(context: EvaluationContext) -> EvaluationContext:
    """For counting: a latent answers itself."""
    return EvaluationContext(dict.fromkeys(context.networks, _itself), context.conditionings)


def _itself(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x
