"""A diffusers model folder, looked at without loading weights: which family opens it, and which models go together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import INDEX
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Checkpoint
from prefect_regional_diffusion.sampling_core.models.files import Follow, ModelFiles, find_files
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value


def open_folder(model: str, follow: Follow = os.path.realpath) -> Checkpoint:
    """Check all files of a model folder, and read its configurations.

    `follow` gives the real path behind a link, and raises if it may not be followed. Raises ModelError for what is no
    model folder, or one that is not supported.
    """
    try:
        path = EMBEDDED if model == "embedded" else Path(model).expanduser()
        if not (path / INDEX).is_file():
            raise ModelError("model", model, "`embedded`, or a folder with model_index.json (diffusers layout)")
        return _opened(path, find_files(model, path, follow))
    except (OSError, ValueError, RuntimeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ModelError("model", model, f"a model folder that can be read ({reason})") from error


@lru_cache(maxsize=16)
def _opened(path: Path, files: ModelFiles) -> Checkpoint:
    """The same files need not be checked twice."""
    pipeline = files.mapping(INDEX).get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        allowed = f"_class_name is {plain_value(pipeline)}, and may only be {' or '.join(sorted(FAMILIES))}"
        raise files.refusal(f"a folder whose pipeline is known ({INDEX}: {allowed})")
    return FAMILIES[pipeline](path, files)


def check_alike(models: Mapping[str, str], checkpoints: Mapping[str, Checkpoint], canvas: Canvas, steps: int) -> None:
    """Raise ModelError for a model whose latents, or whose noise levels for this work, are not the first one's.

    `models` is field -> name, the job's own first; `checkpoints` is by name.
    """
    first = checkpoints[next(iter(models.values()))]
    for field, name in models.items():
        other = checkpoints[name]
        for what in ("latent_channels", "vae_scale_factor", "latent_affine"):
            own, wanted = getattr(other.facts, what), getattr(first.facts, what)
            if own != wanted:
                raise ModelError(field, f"{name} ({what} {own})", f"a model with the same latents ({what} {wanted})")
        if other.noise_schedule(canvas, steps).sigmas != first.noise_schedule(canvas, steps).sigmas:
            raise ModelError(
                field, name, f"a model with the noise levels of the job's own at {canvas.width} x {canvas.height}"
            )
