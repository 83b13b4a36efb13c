"""Task: the finished latent to PNG files."""

from __future__ import annotations

import asyncio
import io
import json

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prefect_regional_diffusion.sampling_core.tensors.types import Latent, RgbImage
from prefect_regional_diffusion.tasks.inputs.file_names import file_stem, portable_job
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.storage.keys import output
from prefect_regional_diffusion.tasks.storage.store import Store


@task("decode")
async def decode(run: RenderContext, latents: Latent, out: str, name: str) -> dict[str, bytes]:
    """Write one PNG per picture of finished latents [b, c, h, w] into the folder or fsspec URL `out`.

    Returns the PNG files by path. A file's name is for people and ends in the job's hash; the job itself is in the
    PNG's text chunk `regional-job`, and the digests of the files that it names in `regional-files`.
    """
    folder, stem = Store(out, "out"), file_stem(run.job_hash, name)
    pictures = await asyncio.to_thread(encoded, run, latents)
    files = [f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png" for i in range(len(pictures))]
    for file, data in zip(files, pictures, strict=True):
        await asyncio.to_thread(folder.write, output(file), data)
    return {f"{out}/{file}": data for file, data in zip(files, pictures, strict=True)}


def encoded(run: RenderContext, latents: Latent) -> list[bytes]:
    """The pictures of finished latents [b, c, h, w] as PNG files, with the job in each."""
    autoencoder = run.autoencoder
    text = PngInfo()
    text.add_itxt("regional-job", portable_job(run.job).model_dump_json())
    text.add_itxt("regional-files", json.dumps(run.files))
    files: list[bytes] = []
    # One after the other: a decoder needs more memory for a picture than a forward does.
    for latent in latents:
        buffer = io.BytesIO()
        picture = _kept(run, autoencoder.decode(latent[None])[0])
        Image.fromarray(picture.numpy()).save(buffer, format="PNG", pnginfo=text)
        files.append(buffer.getvalue())
    return files


def _kept(run: RenderContext, picture: RgbImage) -> RgbImage:
    """The picture with what is protected taken from the init image, pixel by pixel."""
    if "protected" not in run.inputs:
        return picture
    return torch.where(run.inputs["protected"][:, :, None] > 0, run.inputs["picture"], picture)
