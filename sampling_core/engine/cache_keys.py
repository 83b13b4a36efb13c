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


def segment_keys(
    segments: Sequence[Segment],
    context: object,
    models: Mapping[str, ModelKey],
    embeddings: Mapping[str, str] | None = None,
) -> tuple[SegmentKey, ...]:
    """Names (SHA-256, hex) of a run's segments. `models` are by the names that the run has for them.

    `context` is JSON that all states depend on; `embeddings` are the digests of textual inversions by the names that
    prompts have for them. Raises TypeError for a value that cannot be hashed.
    """
    name, keys = content_hash(context), list[SegmentKey]()
    names = _Names(models, embeddings or {}, {})
    for first, values in segments:
        name = content_hash([name, first, _hashable(values, names)])
        keys.append(SegmentKey(first, name))
    return tuple(keys)


class _Names(NamedTuple):
    """Content by name: models, and digests of embeddings; and digests of tensors that were hashed before, by id."""

    models: Mapping[str, ModelKey]
    embeddings: Mapping[str, str]
    tensors: dict[int, str]


def _hashable(value: object, names: _Names) -> Any:
    """A value as JSON that is equal for equal values alone."""
    hashable = partial(_hashable, names=names)
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            # The passes of a sequential run have the same masks, of a whole canvas, over and over.
            if id(value) not in names.tensors:
                names.tensors[id(value)] = hashlib.sha256(
                    value.detach().cpu().contiguous().numpy().tobytes()
                ).hexdigest()
            return [str(value.dtype), list(value.shape), names.tensors[id(value)]]
        case ClassifierFreeGuidance():
            inputs = [value.cfg, value.prompts, value.negative if value.always_both else None, value.always_both]
            return [*inputs, *_prompt_inputs(value, names)]
        case EmbeddedGuidance():
            return [type(value).__name__, value.scale, value.positive, *_prompt_inputs(value, names)]
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


def _prompt_inputs(guidance: ClassifierFreeGuidance | EmbeddedGuidance, known_names: _Names) -> list[Any]:
    """The model and LoRAs that read the prompts, sizes that are not the canvas', the prompts' dialect with what they
    name if it is not the plain one, and what the denoiser has beside them.
    """
    model = (
        known_names.models.get(guidance.model, ModelKey(guidance.model))._replace(loras=guidance.adapters.loras).digest
    )
    inputs: list[Any] = [model]
    if guidance.sizes is not None and not guidance.sizes.plain:
        negative = guidance.negative_sizes if isinstance(guidance, ClassifierFreeGuidance) else None
        inputs.append({"sizes": [guidance.sizes, negative]})
    if guidance.syntax != "plain":
        prompts = [key.prompt for key in guidance.prompt_keys]
        names = {name for prompt in prompts for name in embedding_names(prompt, guidance.syntax)}
        inputs += [guidance.syntax, {name: known_names.embeddings[name] for name in names}]
    if guidance.adapters.controls:
        inputs.append({"controls": _hashable(guidance.adapters.controls, known_names)})
    if guidance.adapters.image_prompts:
        inputs.append({"image_prompts": _hashable(guidance.adapters.image_prompts, known_names)})
    negative_map = guidance.negative_map if isinstance(guidance, ClassifierFreeGuidance) else None
    if guidance.positive_map is not None or negative_map is not None:
        inputs.append({"prompt_maps": [_hashable(one, known_names) for one in (guidance.positive_map, negative_map)]})
    return inputs


_SOLVER_TYPES = {type(solver) for solver in SOLVERS.values()}


@lru_cache(maxsize=8)
def _levels(levels: ModelLevels) -> str:
    return content_hash([levels.sigmas, levels.prediction, levels.log_sigmas])
