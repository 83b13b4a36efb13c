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

from prefect_regional_diffusion.sampling_core.engine.guidance import (
    ClassifierFreeGuidance,
    EmbeddedGuidance,
    ExpertGuidance,
)
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, CounterBasedNoise
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import embedding_names


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


def named(
    segments: Sequence[Segment],
    context: object,
    models: Mapping[str, ModelKey],
    embeddings: Mapping[str, str] | None = None,
) -> tuple[SegmentKey, ...]:
    """Names (SHA-256, hex) of a run's segments. `models` are by the names that the run has for them.

    `context` is JSON that all states depend on; `embeddings` are the digests of textual inversions by the names that
    prompts have for them. Raises TypeError for a value that cannot be hashed.
    """
    name, found = content_hash(context), list[SegmentKey]()
    known = _Known(models, embeddings or {}, {})
    for first, values in segments:
        name = content_hash([name, first, _hashable(values, known)])
        found.append(SegmentKey(first, name))
    return tuple(found)


class _Known(NamedTuple):
    """What names stand for: models, embeddings by their digests; and digests of tensors that were met before, by id."""

    models: Mapping[str, ModelKey]
    embeddings: Mapping[str, str]
    tensors: dict[int, str]


def _hashable(value: object, known: _Known) -> Any:
    """A value as JSON that is equal for equal values alone."""
    hashable = partial(_hashable, known=known)
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            # The passes of a sequential run have the same masks, of a whole canvas, over and over.
            if id(value) not in known.tensors:
                known.tensors[id(value)] = hashlib.sha256(
                    value.detach().cpu().contiguous().numpy().tobytes()
                ).hexdigest()
            return [str(value.dtype), list(value.shape), known.tensors[id(value)]]
        case ClassifierFreeGuidance():
            asked = [value.cfg, value.prompts, value.negative if value.always_both else None, value.always_both]
            return [*asked, *_read_by(value, known)]
        case EmbeddedGuidance():
            return [type(value).__name__, value.scale, value.positive, *_read_by(value, known)]
        case ExpertGuidance():
            return [type(value).__name__, value.sigma, hashable(value.upper), hashable(value.lower)]
        case ModelLevels():
            return _levels(value)
        case CounterBasedNoise() | ComfyNoise():
            return [type(value).__name__, hashable(value.identity)]
        case _ if type(value) in _SOLVER_TYPES:
            return next(name for name, solver in SOLVERS.items() if solver is value)
        case tuple() | list():
            return [type(value).__name__, *map(hashable, cast("Sequence[object]", value))]
        case _ if is_dataclass(value):
            return [type(value).__name__, *(hashable(getattr(value, field.name)) for field in fields(value))]
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a run's history")


def _read_by(guidance: ClassifierFreeGuidance | EmbeddedGuidance, known: _Known) -> list[Any]:
    """The model and LoRAs that read the prompts, sizes that are not the canvas', the prompts' dialect with what they
    name if it is not the plain one, and what the denoiser has beside them.
    """
    model = known.models.get(guidance.model, ModelKey(guidance.model))._replace(loras=guidance.adapters.loras).digest
    read_by: list[Any] = [model]
    if guidance.sizes is not None and not guidance.sizes.plain:
        negative = guidance.negative_sizes if isinstance(guidance, ClassifierFreeGuidance) else None
        read_by.append({"sizes": [guidance.sizes, negative]})
    if guidance.syntax != "plain":
        names = {name for prompt in guidance.prompts for name in embedding_names(prompt, guidance.syntax)}
        read_by += [guidance.syntax, {name: known.embeddings[name] for name in names}]
    if guidance.adapters.controls:
        read_by.append({"controls": _hashable(guidance.adapters.controls, known)})
    if guidance.adapters.image_prompts:
        read_by.append({"image_prompts": _hashable(guidance.adapters.image_prompts, known)})
    return read_by


_SOLVER_TYPES = {type(solver) for solver in SOLVERS.values()}


@lru_cache(maxsize=8)
def _levels(levels: ModelLevels) -> str:
    return content_hash([levels.sigmas, levels.prediction, levels.log_sigmas])
