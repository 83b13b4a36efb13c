"""What the bits of results depend on beside the job, on a machine: part of keys in the store, and of records."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.versions import version


def of_encoding(models: Iterable[Facts]) -> str:
    """Of prompts: the kind of device, types of numbers, versions of the libraries, and how attention is computed."""
    machine = settings()
    device = machine.torch_device().partition(":")[0]
    dtypes = " ".join(sorted({str(machine.torch_dtype(facts)) for facts in models}))
    libraries = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    attention = "" if machine.attention == "auto" else f" attention {machine.attention}"
    return f"{device} {dtypes} {libraries}{attention}"


def of_sampling(models: Iterable[Facts]) -> str:
    """Of latents: as for prompts, and how denoisers are compiled."""
    compile_mode = settings().compile
    return of_encoding(models) + ("" if compile_mode == "off" else f" compiled {compile_mode}")


def of_pictures(model: Facts, canvas: Canvas) -> str:
    """Of pictures and latents of an autoencoder: as for prompts, and the tiles that it works in."""
    tile = settings().vae_tile
    return of_encoding([model]) + (f" tiles {tile}" if tile is not None and max(canvas) > tile else "")
