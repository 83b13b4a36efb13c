"""Job files that a person hands in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sampling_core.errors import BadInput
from sampling_core.grid_job import GridJob, NamedJob
from sampling_core.job import RenderJob
from sampling_core.parsing import parse_grid, parse_job
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
    data = job.model_dump(exclude_unset=True)
    regions = data.get("regions", ())
    shapes = [region["mask"] for region in regions] + list(data.get("protect", ()))
    places = [(shape, name) for shape in shapes for name in ("image", "color_map")]
    places += [(data.get("node", {}).get("tile", {}), name) for name in ("image", "color_map")]
    places += [(data, "start_image"), *((part, "model") for part in (data, *regions))]
    for part, name in places:
        path = part.get(name)
        if path is not None and (name, path) != ("model", "embedded") and not is_url(path):
            part[name] = str(folder / _expanded(path))
    return RenderJob.model_validate(data)


def _expanded(path: str) -> Path:
    """`~` is the home folder; that of an unknown user stays as it is, and is then not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
