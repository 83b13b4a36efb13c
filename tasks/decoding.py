"""Task: the finished latent to PNG files."""

from __future__ import annotations

import io
import re

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from prefect import task

from sampling_core._types import Photo
from tasks.run import Run
from tasks.sampling import finished_latents
from tasks.store import Store


@task(task_run_name="decode", persist_result=False)
def decode(run: Run, out: str, name: str) -> list[str]:
    """Write one PNG per picture into the folder or fsspec URL `out`; returns their paths.

    The file's name is for people and ends in the job's hash; the job itself is in the PNG's text
    chunk `regional-job`.
    """
    model = run.model(run.job.model)
    # One after the other: a decoder needs more memory for a picture than a forward does.
    pictures = [_kept(run, model.decode(latent[None])[0]) for latent in finished_latents(run)]
    folder, stem = Store(out), file_stem(run, name)
    text = PngInfo()
    text.add_itxt("regional-job", run.job.model_dump_json())
    paths: list[str] = []
    for i, picture in enumerate(pictures):
        file = f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png"
        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, format="PNG", pnginfo=text)
        folder.write(file, buffer.getvalue())
        paths.append(f"{out}/{file}")
    return paths


def _kept(run: Run, picture: Photo) -> Photo:
    """The picture with what is protected taken from the start image, pixel by pixel."""
    if "protected" not in run.inputs:
        return picture
    return torch.where(run.inputs["protected"][:, :, None] > 0, run.inputs["picture"], picture)


def file_stem(run: Run, name: str) -> str:
    """`name` made safe for a file system, and the start of the job's hash."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "render"
    return f"{readable}-{run.job_hash[:8]}"
