"""The families of models that are known. A new one is a module here, and an entry below."""

from __future__ import annotations

from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.models.families import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    stable_diffusion_xl_refiner,
    z_image,
)
from prefect_regional_diffusion.sampling_core.models.family import Family

FAMILIES: Mapping[str, Family] = {
    stable_diffusion.PIPELINE: stable_diffusion.open_stable_diffusion,
    stable_diffusion_xl.PIPELINE: stable_diffusion_xl.open_stable_diffusion_xl,
    stable_diffusion_xl_refiner.PIPELINE: stable_diffusion_xl_refiner.open_stable_diffusion_xl_refiner,
    stable_diffusion_3.PIPELINE: stable_diffusion_3.open_stable_diffusion_3,
    flux.PIPELINE: flux.open_flux,
    z_image.PIPELINE: z_image.open_z_image,
}
"""By the class of pipeline that a model_index.json names."""
