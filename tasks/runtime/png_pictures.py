"""Finished latents as PNG files, with the job in each."""

from __future__ import annotations

import io
import json

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prefect_regional_diffusion.sampling_core.tensors.types import Latent, RgbImage
from prefect_regional_diffusion.tasks.inputs.file_names import portable_job
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext


def png_files(run: RenderContext, latents: Latent) -> list[bytes]:
    """One PNG file per picture of finished latents [b, c, h, w].

    The job itself is in the text chunk `regional-job`, and the digests of the files that it names in `regional-files`.
    """
    text = PngInfo()
    text.add_itxt("regional-job", portable_job(run.job).model_dump_json())
    text.add_itxt("regional-files", json.dumps(run.files))
    files: list[bytes] = []
    with run.autoencoder() as autoencoder:
        # One after the other: a decoder needs more memory for a picture than a forward does.
        for latent in latents:
            buffer = io.BytesIO()
            picture = _with_protected(run, autoencoder.decode(latent[None])[0])
            Image.fromarray(picture.numpy()).save(buffer, format="PNG", pnginfo=text)
            files.append(buffer.getvalue())
    return files


def _with_protected(run: RenderContext, picture: RgbImage) -> RgbImage:
    """The picture with what is protected taken from the init image, pixel by pixel."""
    if "protected" not in run.inputs:
        return picture
    return torch.where(run.inputs["protected"][:, :, None] > 0, run.inputs["picture"], picture)
