"""The data in a job file, and the kind of the file."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from PIL import Image

from prefect_regional_diffusion.sampling_core.errors import FileError
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.inputs.path_policy import is_url
from prefect_regional_diffusion.tasks.inputs.safe_yaml import read_json, read_yaml
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular
from prefect_regional_diffusion.tasks.machine.settings import settings

Kind = Literal["job", "grid"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = 2**20
"""Bytes of a picture's head that are read for its text, beside as many as a job may have: the text comes first."""


class JobFileError(FileError):
    """A file that is not the job that was asked for; it says what the file is instead."""

    def __init__(self, file: Path | str, problem: str) -> None:
        super().__init__("job file", file, problem)

    def __str__(self) -> str:
        return super().__str__().removeprefix(f"{self.field}{self.BETWEEN}")


class JobData(NamedTuple):
    """The data of a job or of a grid, not yet checked."""

    kind: Kind
    fields: dict[str, Any]
    from_picture: bool = False
    """Whether it is the job of a finished picture, from the PNG or the record beside it."""


def read_data(file: Path) -> JobData:
    """The data of a file: a job, a grid, or a finished picture's job. Raises JobFileError for anything else."""
    content = _content(file)
    if content.startswith(_PNG):
        return JobData("job", _mapping(file, _json(file, _text_of_picture(file, content))), from_picture=True)
    most = settings().max_job_bytes
    if len(content) > most:
        raise JobFileError(file, f"has more than {most} bytes (REGIONAL_MAX_JOB_BYTES)")
    data = _mapping(file, _parse(file, _decode_text(file, content), most))
    job = data.get("job")
    if isinstance(job, Mapping) and "job_hash" in data:
        return JobData("job", cast("dict[str, Any]", job), from_picture=True)
    if {"sheet", "images"} <= data.keys():
        raise JobFileError(file, "is the table of a grid's or a batch's pictures, and no job")
    grid_fields = data.keys() & GridJob.model_fields.keys() - RenderJob.model_fields.keys()
    is_grid = "job" in grid_fields or (grid_fields and not data.keys() & RenderJob.model_fields.keys())
    return JobData("grid" if is_grid else "job", data)


def _content(file: Path) -> bytes:
    """The bytes of a file: all of a job, or the head of a picture."""
    if is_url(str(file)):
        # A path has one slash where the URL had two.
        raise JobFileError(str(file).replace(":/", "://", 1), "is a URL, and no file on this machine")
    try:
        # A link to a job file will do.
        real_path = os.path.realpath(file)
        with file.open("rb") if _is_handed_over(file) else os.fdopen(open_regular(real_path), "rb") as stream:
            content = stream.read(settings().max_job_bytes + 1)
            return content + stream.read(_PNG_HEAD) if content.startswith(_PNG) else content
    except NoRegularFileError as error:
        hint = ": regional batch and plan take a pattern such as 'jobs/*.yaml'" if error.kind == "a folder" else ""
        raise JobFileError(file, f"is {error.kind}, and no job file{hint}") from error
    except FileNotFoundError as error:
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise JobFileError(file, f"does not exist{where}") from error
    except (OSError, ValueError) as error:
        raise JobFileError(file, f"cannot be read ({_reason(error)})") from error


def _is_handed_over(file: Path) -> bool:
    """Whether it is standard input, the terminal or a shell's pipe; any other pipe may have no writer."""
    return str(file) in ("/dev/stdin", "/dev/tty") or file.parts[:3] == ("/", "dev", "fd")


def _text_of_picture(file: Path, head: bytes) -> str:
    """The job in the text of a PNG that was drawn here. Only its head is read, and nothing is unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(head), formats=["PNG"]) as image:
                text = image.info.get("regional-job")
    except Exception as error:  # decoders fail in many ways on damaged files
        raise JobFileError(file, f"is a damaged picture ({_reason(error)})") from error
    if not isinstance(text, str):
        raise JobFileError(file, "is a picture without a job in it")
    return str(text)


def _decode_text(file: Path, content: bytes) -> str:
    if not content.strip():
        raise JobFileError(file, "is empty")
    try:
        # Some editors begin a file with a byte order mark.
        text = content.decode("utf-8-sig")
    except ValueError as error:
        raise JobFileError(file, "is no text in UTF-8") from error
    if "\0" in text:
        raise JobFileError(file, "is no text in UTF-8")
    return text


def _parse(file: Path, text: str, most: int) -> Any:
    if file.suffix.lower() == ".json":
        return _json(file, text)
    try:
        return read_yaml(text, most)
    except ValueError as error:
        raise JobFileError(file, f"is not valid YAML ({error})") from error


def _json(file: Path, text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise JobFileError(file, f"is not valid JSON ({error})") from error


def _mapping(file: Path, data: Any) -> dict[str, Any]:
    if data is None:
        raise JobFileError(file, "says nothing")
    if not isinstance(data, dict):
        kind = {list: "a list", str: "plain text"}.get(type(data), "a single value")
        raise JobFileError(file, f"is {kind} and no mapping of fields, such as `prompt: a blue sea`")
    return cast("dict[str, Any]", data)


def _reason(error: Exception) -> str:
    return plain(getattr(error, "strerror", None) or error, 160)
