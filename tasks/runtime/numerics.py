"""What the bits of a machine's results depend on beside the job: part of keys in the store, and of records."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.versions import version


def of_encoding(models: Iterable[Facts]) -> str:
    """Of prompts: the kind of device, types of numbers, versions of the libraries, and how attention is computed."""
    chosen = settings()
    device = chosen.torch_device().partition(":")[0]
    dtypes = " ".join(sorted({str(chosen.torch_dtype(facts)) for facts in models}))
    libraries = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    attention = "" if chosen.attention == "auto" else f" attention {chosen.attention}"
    return f"{device} {dtypes} {libraries}{attention}"


def of_sampling(models: Iterable[Facts]) -> str:
    """Of latents: as of prompts, and how denoisers are compiled."""
    compiled = settings().compile
    return of_encoding(models) + ("" if compiled == "off" else f" compiled {compiled}")


def of_pictures(model: Facts, canvas: Canvas) -> str:
    """Of what an autoencoder makes on a canvas: as of prompts, and the tiles that it works in."""
    tile = settings().vae_tile
    return of_encoding([model]) + (f" tiles {tile}" if tile is not None and max(canvas) > tile else "")
