"""Files that a person hands in: job files, and the images that masks are read from."""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsspec.core import url_to_fs
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from sampling_core._types import Photo
from sampling_core.errors import BadInput
from sampling_core.grid_job import GridJob, NamedJob
from sampling_core.job import RenderJob
from sampling_core.parsing import parse_grid, parse_job
from tasks.credentials import storage_options
from tasks.file_names import beside, renamed
from tasks.job_text import read_yaml
from tasks.settings import settings
from tasks.trust import image_place, is_url

_SET_FORM = "path.to.field=value, for instance seed=7 or regions.0.prompt=fog"
_JOB_SUFFIXES = (".yaml", ".yml", ".json")


def read_job(file: Path, overrides: Sequence[str] = ()) -> RenderJob:
    """A job from a YAML or JSON file, with `path.to.field=value` overrides.

    Mask files and model folders are looked for beside the job file. Raises BadInput or BadJob.
    """
    return _beside(parse_job(_data(file, overrides)), file.resolve().parent)


def read_grid(file: Path, overrides: Sequence[str] = ()) -> GridJob:
    """A grid job from a file, in the same way."""
    asked = parse_grid(_data(file, overrides))
    job = _beside(asked.job, file.resolve().parent)
    return GridJob.model_validate(asked.model_dump(exclude_unset=True) | {"job": job})


def read_any(file: Path, overrides: Sequence[str] = ()) -> RenderJob | GridJob:
    """A grid job, if the file has the field `job`; else a job."""
    data = _data(file, ())
    grid = isinstance(data, dict) and "job" in data
    return read_grid(file, overrides) if grid else read_job(file, overrides)


def read_jobs(pattern: str) -> list[NamedJob]:
    """The jobs of all files that a pattern such as `jobs/*.yaml` finds below the working folder, by their paths.

    Each is named by its file; where that is not enough, by its path. Raises BadInput or BadJob.
    """
    allowed = "a pattern below the folder that this runs in, such as jobs/*.yaml"
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise BadInput("files", pattern, allowed)
    try:
        found = sorted(file.relative_to(Path.cwd()) for file in Path.cwd().glob(pattern))
    except (ValueError, IndexError) as error:  # no pattern at all
        raise BadInput("files", pattern, allowed) from error
    # As in a shell, nothing hidden is found.
    files = [_job_file(file) for file in found if not any(part.startswith(".") for part in file.parts)]
    if not files:
        raise BadInput("files", pattern, f"a pattern that finds job files in {Path.cwd()}, and no hidden ones")
    names = [file.stem[:80] for file in files]
    return [
        NamedJob(name=name if names.count(name) == 1 else str(file)[-80:], job=read_job(file))
        for name, file in zip(names, files, strict=True)
    ]


def _job_file(found: Path) -> Path:
    """The real path of a file that a pattern found. What it holds may be repeated in an error, so it must be a job."""
    file = Path(image_place("files", str(found)))
    if any(name.suffix.lower() not in _JOB_SUFFIXES or name.name.startswith(".") for name in (found, file)):
        raise BadInput("files", str(found), f"a pattern that finds only {', '.join(_JOB_SUFFIXES)} files")
    return file


def _data(file: Path, overrides: Sequence[str]) -> Any:
    """What a job file says, with overrides."""
    most = settings().max_job_bytes
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise BadInput("job file", str(file), f"a file of at most {most} bytes (REGIONAL_MAX_JOB_BYTES)")
        text = content.decode()
    except (OSError, ValueError) as error:
        raise BadInput("job file", str(file), f"a readable YAML or JSON file ({_reason(error)})") from error
    try:
        data = json.loads(text) if file.suffix.lower() == ".json" else read_yaml(text, most)
    except (ValueError, RecursionError) as error:
        raise BadInput("job file", str(file), f"valid YAML or JSON ({_reason(error)})") from error
    for override in overrides:
        _set(data, override)
    return data


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
            target[int(last)] = read_yaml(text, settings().max_job_bytes)
        else:
            target[last] = read_yaml(text, settings().max_job_bytes)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise BadInput("--set", override, f"{_SET_FORM} ({_reason(error)})") from error


def _beside(job: RenderJob, folder: Path) -> RenderJob:
    """The job with relative paths of images and models taken from the job file's folder, made absolute."""

    def placed(path: str) -> str:
        expanded = _expanded(path)
        if is_url(path) or expanded.is_absolute():
            return path if is_url(path) else str(expanded)
        return beside(str(folder), str(expanded))

    return renamed(job, placed)


def _expanded(path: str) -> Path:
    """`~` is the home folder; that of an unknown user stays as it is, and is then not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@dataclass(frozen=True)
class ImageFiles:
    """The decoded images of a job, and the SHA-256 of each file; both by path."""

    photos: Mapping[str, Photo]
    digests: Mapping[str, str]


def read_image_files(job: RenderJob) -> ImageFiles:
    """Read every image that a job names. Raises BadInput for one that is missing, too large or no image."""
    left = settings().max_image_pixels
    photos: dict[str, Photo] = {}
    digests: dict[str, str] = {}
    for field, name in job.image_files().items():
        if name not in photos:
            data = _read_limited(field, name)
            photos[name] = _decode(field, name, data, min(left, settings().max_mask_pixels))
            left -= math.prod(photos[name].shape[:2])
            digests[name] = hashlib.sha256(data).hexdigest()
    return ImageFiles(photos, digests)


def resized(photo: Photo, size: tuple[int, int]) -> Photo:
    """The photo at a size (height, width; pixels); one that has it stays as it is, to the last bit."""
    if tuple(photo.shape[:2]) == size:
        return photo
    image = Image.fromarray(photo.numpy()).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


def _read_limited(field: str, name: str) -> bytes:
    limit = settings().max_mask_bytes
    place = image_place(field, name)
    data = b""
    try:
        system, path = url_to_fs(place, **storage_options(place))
        # Not of a device or a pipe: those would be read for ever.
        there = bool(system.isfile(path))
        if there:
            with system.open(path, "rb") as file:
                data = file.read(limit + 1)
    except Exception as error:  # an object store has its own ways to fail
        raise BadInput(field, name, f"a readable image file ({_reason(error)})") from error
    if not there:
        raise BadInput(field, name, "a readable image file (there is none)")
    if len(data) > limit:
        raise BadInput(field, name, f"an image file of at most {limit} bytes")
    return data


def _decode(field: str, name: str, data: bytes, most_pixels: int) -> Photo:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is checked here or does not matter: sizes, odd palettes, odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return torch.from_numpy(np.array(_flat(image, most_pixels)))
    except Exception as error:  # decoders fail in many ways on damaged files
        raise BadInput(field, name, f"a readable image file ({_reason(error)})") from error


_TILE_SIDES = (322, 323)
"""TIFF tags: TileWidth, TileLength."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def _flat(image: Image.Image, limit: int) -> Image.Image:
    """8-bit RGB: deeper greys are scaled, and what is transparent is black (outside)."""
    # A TIFF is decoded by whole tiles, and one tile may be far larger than its image.
    tile = math.prod(int(image.tag_v2.get(side, 1)) for side in _TILE_SIDES) if isinstance(image, TiffImageFile) else 0
    if max(image.width * image.height, tile) > limit:
        raise ValueError(f"{image.width} x {image.height} is more than {limit} pixels, or its tiles are")
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):
        deep = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray((deep / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")
