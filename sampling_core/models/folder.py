"""Opens a model without loading weights: which family its folder or file is of, and which models go together."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import INDEX
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Checkpoint
from prefect_regional_diffusion.sampling_core.models.files import Follow, ModelFiles, find_files, of_variant
from prefect_regional_diffusion.sampling_core.models.single_file.opening import open_file, open_parts
from prefect_regional_diffusion.sampling_core.models.single_file.split import PartFiles
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value


def open_checkpoint(model: str, follow: Follow = os.path.realpath, variant: str | None = None) -> Checkpoint:
    """A model folder, or a model in one file; `variant` says which of a folder's weights. Raises ModelError."""
    if model == "embedded":
        return open_folder(model)
    with _model_errors(model):
        path = Path(model).expanduser()
        if variant is None and path.is_file():
            return open_file(model, path, follow)
        return open_folder(model, follow, variant)


def open_split(model: str, parts: PartFiles, follow: Follow = os.path.realpath) -> Checkpoint:
    """A model in several files, which `model` names. Raises ModelError."""
    with _model_errors(model):
        return open_parts(model, Path(model), parts, follow)


def open_folder(model: str, follow: Follow = os.path.realpath, variant: str | None = None) -> Checkpoint:
    """Check all files of a model folder, and read its configurations.

    `follow` gives the real path behind a link, and raises if it may not be followed. A `variant` is part of the names
    of its weight files (`fp16`). Raises ModelError for what is no model folder, or one that is not supported.
    """
    with _model_errors(model):
        path = EMBEDDED if model == "embedded" else Path(model).expanduser()
        if not (path / INDEX).is_file():
            problem = f"has no {INDEX}, as models in diffusers layout do" if path.is_dir() else "does not exist"
            raise ModelError("model", model, f"{problem} (`embedded` is the one that is always there)")
        files = find_files(model, path, follow)
        return _open_family(path, files if variant is None else of_variant(files, variant))


@contextmanager
def _model_errors(model: str) -> Generator[None]:
    """Raises errors of the file system as ModelError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ModelError("model", model, f"cannot be read: {reason}") from error


@lru_cache(maxsize=16)
def _open_family(path: Path, files: ModelFiles) -> Checkpoint:
    """Cached: the same files are checked once."""
    pipeline = files.mapping(INDEX).get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        pipelines = " or ".join(sorted(FAMILIES))
        raise files.error(
            f"is of no known pipeline ({INDEX}: _class_name is {plain_value(pipeline)}, and not {pipelines})"
        )
    return FAMILIES[pipeline](path, files)


def check_alike(models: Mapping[str, str], checkpoints: Mapping[str, Checkpoint], canvas: Canvas, steps: int) -> None:
    """Raise ModelError for a model whose latents, or whose noise levels for this canvas, are not the first one's.

    `models` is field -> name, the job's own first; `checkpoints` is by name.
    """
    first = checkpoints[next(iter(models.values()))]
    for field, name in models.items():
        other = checkpoints[name]
        for fact in ("latent_channels", "vae_scale_factor", "latent_affine"):
            value, first_value = getattr(other.facts, fact), getattr(first.facts, fact)
            if value != first_value:
                raise ModelError(
                    field, name, f"has other latents than the job's own model ({fact} {value}, not {first_value})"
                )
        if other.noise_schedule(canvas, steps).sigmas != first.noise_schedule(canvas, steps).sigmas:
            size = f"{canvas.width} x {canvas.height}"
            raise ModelError(field, name, f"has other noise levels than the job's own model at {size}")
