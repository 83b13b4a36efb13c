"""Job files that a person hands in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import BadBatch, BadInput, FileError, RegionalError
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.file_names import beside, renamed
from prefect_regional_diffusion.tasks.inputs.job_data import Found, JobFileError, read_data
from prefect_regional_diffusion.tasks.inputs.limits import check_count
from prefect_regional_diffusion.tasks.inputs.overrides import set_field
from prefect_regional_diffusion.tasks.inputs.path_policy import image_place, is_url

_MOST_WILDCARDS, _MOST_PARTS = 4, 64
_JOB_SUFFIXES = (".yaml", ".yml", ".json")


def read_job(file: Path, overrides: Sequence[str] = ()) -> RenderJob:
    """A job from a YAML or JSON file, or the job of a finished picture, with `path.to.field=value` overrides.

    Mask files and model folders are looked for beside the file. Raises JobFileError, BadInput or BadJob.
    """
    return _job(file, read_data(file), overrides)


def read_grid(file: Path, overrides: Sequence[str] = ()) -> GridJob:
    """A grid job from a file, in the same way."""
    return _grid(file, read_data(file), overrides)


def read_any(file: Path, overrides: Sequence[str] = ()) -> RenderJob | GridJob:
    """A job or a grid job, whichever the file is."""
    found = read_data(file)
    return _grid(file, found, overrides) if found.kind == "grid" else _job(file, found, overrides)


def _job(file: Path, found: Found, overrides: Sequence[str]) -> RenderJob:
    if found.kind == "grid":
        raise JobFileError(file, "is a grid, which regional grid draws")
    for override in overrides:
        set_field(found.data, override, RenderJob)
    return _beside(parse_job(found.data), file.resolve().parent)


def _grid(file: Path, found: Found, overrides: Sequence[str]) -> GridJob:
    if found.kind == "job":
        what = "holds the job of a finished picture" if found.of_a_picture else "is a job"
        raise JobFileError(file, f"{what}, which regional render draws, and no grid (job, rows, columns, cells)")
    for override in overrides:
        set_field(found.data, override, GridJob)
    asked = parse_grid(found.data)
    job = _beside(asked.job, file.resolve().parent)
    return GridJob.model_validate(asked.model_dump(exclude_unset=True) | {"job": job})


def read_jobs(pattern: str, overrides: Sequence[str] = ()) -> list[NamedJob]:
    """The jobs of all files that a pattern such as `jobs/*.yaml` finds below the working folder, by their paths.

    Each is named by its file; where that is not enough, by its path. Overrides are of every job. Raises BadInput or
    FileError for the pattern, and BadBatch with all mistakes of all files.
    """
    return list(read_job_files(pattern, overrides).values())


def read_job_files(pattern: str, overrides: Sequence[str] = ()) -> dict[Path, NamedJob]:
    """The same, with the files as they were found."""
    files = _found(pattern)
    names = [file.stem[:80] for file in files.values()]
    jobs: dict[Path, NamedJob] = {}
    mistakes: list[RegionalError] = []
    for (found, file), name in zip(files.items(), names, strict=True):
        try:
            job = read_job(file, overrides)
            jobs[found] = NamedJob(name=name if names.count(name) == 1 else str(found)[-80:], job=job)
        except JobFileError as error:
            mistakes.append(JobFileError(found, error.problem))
        except RegionalError as error:
            mistakes += [one.within(f"{found}: ") for one in error.mistakes]
    if mistakes:
        raise BadBatch(mistakes)
    return jobs


def _found(pattern: str) -> dict[Path, Path]:
    """The job files that a pattern finds, with their real paths. Raises BadInput or FileError."""
    allowed = "a pattern below the folder that this runs in, such as jobs/*.yaml"
    parts = Path(pattern).parts
    if Path(pattern).is_absolute() or ".." in parts:
        raise BadInput("files", pattern, allowed)
    # Each ** finds all folders below all those of the one before it, and a link to a folder above doubles each level.
    if parts.count("**") > 1 or sum(any(sign in part for sign in "*?[") for part in parts) > _MOST_WILDCARDS:
        raise BadInput(
            "files", pattern, f"{allowed}, with ** once and other wildcards in {_MOST_WILDCARDS} parts at most"
        )
    if len(parts) > _MOST_PARTS:
        raise BadInput("files", pattern, f"{allowed}, of at most {_MOST_PARTS} parts")
    here, found = Path.cwd(), list[Path]()
    try:
        for file in here.glob(pattern):
            relative = file.relative_to(here)
            # As in a shell, nothing hidden is found.
            if not any(part.startswith(".") for part in relative.parts):
                found.append(relative)
                check_count("files", len(found))
    except (ValueError, IndexError) as error:  # no pattern at all
        raise BadInput("files", pattern, allowed) from error
    files = {file: _job_file(file) for file in sorted(found)}
    if not files:
        raise FileError("files", pattern, f"finds no job files in {here}; hidden ones do not count")
    return files


def _job_file(found: Path) -> Path:
    """The real path of a file that a pattern found. What it holds may be repeated in an error, so it must be a job."""
    file = Path(image_place("files", str(found)))
    if any(name.suffix.lower() not in _JOB_SUFFIXES or name.name.startswith(".") for name in (found, file)):
        raise BadInput("files", str(found), f"a pattern that finds only {', '.join(_JOB_SUFFIXES)} files")
    return file


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
