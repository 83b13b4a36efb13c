"""Jobs from job files, single or by a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import BadBatch, BadInput, FileError, RegionalError
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.file_names import beside, renamed
from prefect_regional_diffusion.tasks.inputs.job_data import JobData, JobFileError, read_data
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
    job_data = read_data(file)
    return _grid(file, job_data, overrides) if job_data.kind == "grid" else _job(file, job_data, overrides)


def _job(file: Path, job_data: JobData, overrides: Sequence[str]) -> RenderJob:
    if job_data.kind == "grid":
        raise JobFileError(file, "is a grid, which regional grid draws")
    for override in overrides:
        set_field(job_data.fields, override, RenderJob)
    return _with_absolute_paths(parse_job(job_data.fields), file.resolve().parent)


def _grid(file: Path, job_data: JobData, overrides: Sequence[str]) -> GridJob:
    if job_data.kind == "job":
        what = "holds the job of a finished picture" if job_data.from_picture else "is a job"
        raise JobFileError(file, f"{what}, which regional render draws, and no grid (job, rows, columns, cells)")
    for override in overrides:
        set_field(job_data.fields, override, GridJob)
    grid = parse_grid(job_data.fields)
    job = _with_absolute_paths(grid.job, file.resolve().parent)
    return GridJob.model_validate(grid.model_dump(exclude_unset=True) | {"job": job})


def read_jobs(pattern: str, overrides: Sequence[str] = ()) -> list[NamedJob]:
    """The jobs of all files that a pattern such as `jobs/*.yaml` finds below the working folder, by their paths.

    Each is named by its file; where that is not enough, by its path. Overrides are of every job. Raises BadInput or
    FileError for the pattern, and BadBatch with all mistakes of all files.
    """
    return list(read_job_files(pattern, overrides).values())


def read_job_files(pattern: str, overrides: Sequence[str] = ()) -> dict[Path, NamedJob]:
    """The same, with the files as they were found."""
    files = _find_files(pattern)
    names = [file.stem[:80] for file in files.values()]
    jobs: dict[Path, NamedJob] = {}
    mistakes: list[RegionalError] = []
    for (path, file), name in zip(files.items(), names, strict=True):
        try:
            job = read_job(file, overrides)
            jobs[path] = NamedJob(name=name if names.count(name) == 1 else str(path)[-80:], job=job)
        except JobFileError as error:
            mistakes.append(JobFileError(path, error.problem))
        except RegionalError as error:
            mistakes += [mistake.within(f"{path}: ") for mistake in error.mistakes]
    if mistakes:
        raise BadBatch(mistakes)
    return jobs


def _find_files(pattern: str) -> dict[Path, Path]:
    """The job files that a pattern finds, with their real paths. Raises BadInput or FileError."""
    allowed = "a pattern below the folder that this runs in, such as jobs/*.yaml"
    parts = Path(pattern).parts
    if Path(pattern).is_absolute() or ".." in parts:
        raise BadInput("files", pattern, allowed)
    # Each ** goes through all folders below all those of the one before; a link to a folder above doubles each level.
    if parts.count("**") > 1 or sum(any(sign in part for sign in "*?[") for part in parts) > _MOST_WILDCARDS:
        raise BadInput(
            "files", pattern, f"{allowed}, with ** once and other wildcards in {_MOST_WILDCARDS} parts at most"
        )
    if len(parts) > _MOST_PARTS:
        raise BadInput("files", pattern, f"{allowed}, of at most {_MOST_PARTS} parts")
    here, paths = Path.cwd(), list[Path]()
    try:
        for file in here.glob(pattern):
            relative = file.relative_to(here)
            # As in a shell, hidden files do not match.
            if not any(part.startswith(".") for part in relative.parts):
                paths.append(relative)
                check_count("files", len(paths))
    except (ValueError, IndexError) as error:  # no pattern at all
        raise BadInput("files", pattern, allowed) from error
    files = {file: _job_file(file) for file in sorted(paths)}
    if not files:
        raise FileError("files", pattern, f"finds no job files in {here}; hidden ones do not count")
    return files


def _job_file(path: Path) -> Path:
    """The real path of a file that a pattern found. What it holds may be repeated in an error, so it must be a job."""
    file = Path(image_place("files", str(path)))
    if any(
        candidate.suffix.lower() not in _JOB_SUFFIXES or candidate.name.startswith(".") for candidate in (path, file)
    ):
        raise BadInput("files", str(path), f"a pattern that finds only {', '.join(_JOB_SUFFIXES)} files")
    return file


def _with_absolute_paths(job: RenderJob, folder: Path) -> RenderJob:
    """The job with relative paths of images and models taken from the job file's folder, made absolute."""

    def absolute(path: str) -> str:
        expanded_path = _expand_home(path)
        if is_url(path) or expanded_path.is_absolute():
            return path if is_url(path) else str(expanded_path)
        return beside(str(folder), str(expanded_path))

    return renamed(job, absolute)


def _expand_home(path: str) -> Path:
    """The path with `~` as the home folder; `~` of an unknown user stays as it is, and is then not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
