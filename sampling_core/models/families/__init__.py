"""The families of models that are known. A new one is a module here, and an entry below."""

from __future__ import annotations

from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion import PIPELINE, open_stable_diffusion
from prefect_regional_diffusion.sampling_core.models.family import Family

FAMILIES: Mapping[str, Family] = {PIPELINE: open_stable_diffusion}
"""By the class of pipeline that a model_index.json names."""
