"""Cache keys: runs with equal inputs up to a step have the same state there, and the same key for it.

A run is divided into segments with equal inputs; a new one begins where they change, for instance where a region
enters. A state's key is the hash of its segment, of all earlier ones and of the context, and the step. Inputs are
hashed down to the bits of every tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, EmbeddedGuidance
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.noise.step_noise import SequentialNoise, StepNoise
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS


class Segment(NamedTuple):
    """All states after more than `first` steps, up to the next segment's, are determined by `values`."""

    first: int
    values: object


class SegmentKey(NamedTuple):
    """A segment with a name that stands for everything up to and in it."""

    first: int
    name: str


def state_name(segments: Sequence[SegmentKey], step: int) -> str:
    """The name of the state after a step (counted from 1), below that of its segment."""
    segment = next(segment for segment in reversed(segments) if segment.first < step)
    return f"{segment.name}/{step:05d}"


def named(segments: Sequence[Segment], context: object, models: Mapping[str, ModelKey]) -> tuple[SegmentKey, ...]:
    """Names (SHA-256, hex) of a run's segments. `models` are by the names that the run has for them.

    `context` is JSON that all states depend on. Raises TypeError for a value that cannot be hashed.
    """
    name, found = content_hash(context), list[SegmentKey]()
    digests: dict[int, str] = {}
    for first, values in segments:
        name = content_hash([name, first, _hashable(values, models, digests)])
        found.append(SegmentKey(first, name))
    return tuple(found)


def _hashable(value: object, models: Mapping[str, ModelKey], digests: dict[int, str]) -> Any:
    """A value as JSON that is equal for equal values alone. `digests` are of tensors that were met before, by id."""
    hashable = partial(_hashable, models=models, digests=digests)
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            # The passes of a sequential run have the same masks, of a whole canvas, over and over.
            if id(value) not in digests:
                digests[id(value)] = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), digests[id(value)]]
        case ClassifierFreeGuidance():
            model = models[value.model].digest if value.model in models else value.model
            return [value.cfg, value.prompts, value.negative if value.always_both else None, value.always_both, model]
        case EmbeddedGuidance():
            model = models[value.model].digest if value.model in models else value.model
            return [type(value).__name__, value.scale, value.positive, model]
        case ModelLevels():
            return _levels(value)
        case StepNoise() | SequentialNoise():
            return [type(value).__name__, hashable(value.identity)]
        case _ if type(value) in _SOLVER_TYPES:
            return next(name for name, solver in SOLVERS.items() if solver is value)
        case tuple() | list():
            return [type(value).__name__, *map(hashable, cast("Sequence[object]", value))]
        case _ if is_dataclass(value):
            return [type(value).__name__, *(hashable(getattr(value, field.name)) for field in fields(value))]
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a run's history")


_SOLVER_TYPES = {type(solver) for solver in SOLVERS.values()}


@lru_cache(maxsize=8)
def _levels(levels: ModelLevels) -> str:
    return content_hash([levels.sigmas, levels.prediction, levels.log_sigmas])
