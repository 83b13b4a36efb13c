"""Files that a person hands in: job files, and the images that masks are read from."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, UnidentifiedImageError

from sampling_core._types import Photo
from sampling_core.errors import BadInput
from sampling_core.job import RenderJob
from sampling_core.parsing import parse_job
from tasks.settings import settings

_SET_FORM = "path.to.field=value, for instance seed=7 or regions.0.prompt=fog"


def read_job(file: Path, overrides: Sequence[str] = ()) -> RenderJob:
    """A job from a YAML or JSON file, with `path.to.field=value` overrides.

    Mask files and model folders are looked for beside the job file. Raises BadInput or BadJob.
    """
    try:
        data = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("job file", str(file), f"a readable YAML or JSON file ({_reason(error)})") from error
    except yaml.YAMLError as error:
        raise BadInput("job file", str(file), f"valid YAML or JSON ({_reason(error)})") from error
    for override in overrides:
        _set(data, override)
    job = parse_job(data)
    return _beside(job, file.resolve().parent)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _set(data: Any, override: str) -> None:
    """Put one override into the job's data, in place."""
    path, equals, text = override.partition("=")
    if not equals:
        raise BadInput("--set", override, _SET_FORM)
    *parents, last = path.split(".")
    target = data
    try:
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        if isinstance(target, list):
            target[int(last)] = yaml.safe_load(text)
        else:
            target[last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise BadInput("--set", override, f"{_SET_FORM} ({_reason(error)})") from error


def _beside(job: RenderJob, folder: Path) -> RenderJob:
    """The job with relative mask and model paths taken from the job file's folder, made absolute."""
    data = job.model_dump(exclude_unset=True)
    for region in data.get("regions", ()):
        for name in ("image", "color_map"):
            if name in region["mask"]:
                region["mask"][name] = str(folder / Path(region["mask"][name]).expanduser())
    if job.model != "embedded":
        data["model"] = str(folder / Path(job.model).expanduser())
    return RenderJob.model_validate(data)


@dataclass(frozen=True)
class MaskFiles:
    """The decoded mask images of a job, and the SHA-256 of each file; both by path."""

    photos: Mapping[str, Photo]
    digests: Mapping[str, str]


def read_mask_files(job: RenderJob) -> MaskFiles:
    """Read every image a job's masks name. Raises BadInput for one that is missing, too large or no image."""
    photos: dict[str, Photo] = {}
    digests: dict[str, str] = {}
    for field, name in job.mask_files().items():
        if name not in photos:
            data = _read_limited(field, name)
            photos[name] = _decode(field, name, data)
            digests[name] = hashlib.sha256(data).hexdigest()
    return MaskFiles(photos, digests)


def _read_limited(field: str, name: str) -> bytes:
    limit = settings().max_mask_bytes
    try:
        size = Path(name).stat().st_size
        if size > limit:
            raise BadInput(field, name, f"an image file of at most {limit} bytes (this one has {size})")
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(field, name, f"a readable image file ({_reason(error)})") from error


def _decode(field: str, name: str, data: bytes) -> Photo:
    limit = settings().max_mask_pixels
    try:
        with warnings.catch_warnings():
            # Pillow only warns about a picture that unpacks to a huge size; its size is checked here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > limit:
                    size = f"{image.width} x {image.height}"
                    raise BadInput(field, name, f"an image of at most {limit} pixels (this one is {size})")
                return torch.from_numpy(np.array(image.convert("RGB")))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise BadInput(field, name, f"a readable image file ({_reason(error)})") from error
