"""Names of files: of pictures that are written, and, in a picture, of the files that it was made from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from prefect_regional_diffusion.sampling_core.job.prompt_fields import embedding_label, embeddings_of
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob

HASH_DIGITS = 16
"""Hex digits of a job's hash in the names of its files: 64 bits, so that no two jobs of a folder share them."""

MOST_BYTES = 150
"""Of the readable part of a name. File systems allow 255 for all of it; a file that is being written has 60 more."""

_JOINERS = "\u200c\u200d"
"""Some scripts need them between two letters."""

_TYPED = "/./"
"""In a path, what follows is what somebody typed, and what precedes is the folder of the job file. Paths mean the same
with it and without it; rsync has the same sign."""


def file_stem(job_hash: str, name: str) -> str:
    """The start of a file name: `name` as far as all file systems allow it, in any script, and the job's hash."""
    # A picture whose job is drawn again has the hash in its own name already.
    name = re.sub(rf"-{job_hash[:HASH_DIGITS]}(-[0-9]+)?\Z", "", name)
    marked_name = "".join(letter if _is_allowed(letter) else "\0" for letter in unicodedata.normalize("NFC", name))
    readable = re.sub("\0+", "-", marked_name).encode()[:MOST_BYTES].decode(errors="ignore").strip("-" + _JOINERS)
    return f"{readable or 'render'}-{job_hash[:HASH_DIGITS]}"


def _is_allowed(letter: str) -> bool:
    """Letters, marks and numbers. Separators, control characters and what Windows forbids are none of these."""
    return unicodedata.category(letter)[0] in "LMN" or letter in "_-" or letter in _JOINERS


def beside(folder: str, typed: str) -> str:
    """The path of a file that a file in `folder` calls `typed`; `portable_name` gives back what was typed."""
    return f"{folder}{_TYPED}{typed}"


def typed_name(path: str) -> str | None:
    """What somebody typed, if that is known and no absolute path."""
    _, mark, typed_path = path.partition(_TYPED)
    if mark and not typed_path.startswith("/"):
        return typed_path
    return None if PurePath(path).is_absolute() else path


def portable_name(path: str) -> str:
    """What a picture calls a file: what was typed if that is known and no absolute path, else the file's own name."""
    return typed_name(path) or PurePath(path).name


def shown_path(path: str) -> str:
    """A path as people write it."""
    return path.replace(_TYPED, "/", 1)


def renamed(job: RenderJob, name: Callable[[str], str]) -> RenderJob:
    """The job with other names of its images, adapters and model folders; the embedded model stays."""
    data = job.model_dump(exclude_unset=True)
    regions = data.get("regions", ())
    shapes = [region["mask"] for region in regions] + list(data.get("protect", ()))
    places = [(shape, field) for shape in shapes for field in ("image", "color_map")]
    places += [(data.get("node", {}).get("tile", {}), field) for field in ("image", "color_map")]
    places += [(data, "init_image"), *((part, "model") for part in (data, *regions))]
    adapters = ("loras", "controls", "image_prompts")
    adapter_entries = [entry for part in (data, *regions) for name in adapters for entry in part.get(name) or ()]
    places += [(entry, field) for entry in adapter_entries for field in ("file", "image", "image_encoder")]
    for part, field in places:
        path = part.get(field)
        if path is not None and (field, path) != ("model", "embedded"):
            part[field] = name(path)
    return RenderJob.model_validate(data)


def portable_job(job: RenderJob) -> RenderJob:
    """The job as pictures and records have it: without absolute paths, which would reveal somebody's folders."""
    return renamed(job, portable_name)


def portable_files(job: ResolvedJob, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The content behind the names in a job: by field, the name and the SHA-256 of the file or the weights.

    `digests` are by the path that the job has.
    """
    labels = [embedding_label(embedding.name) for embedding in embeddings_of(job)]
    adapter_files = {use.field: use.file for use in (*job.lora_uses, *job.control_uses)}
    for use in job.image_prompt_uses:
        adapter_files |= {f"{use.field}.file": use.file, f"{use.field}.image_encoder": use.image_encoder}
    files = job.image_files | job.models_by_field | adapter_files | {label: label for label in labels}
    return {field: {"name": portable_name(path), "sha256": digests[path]} for field, path in sorted(files.items())}
