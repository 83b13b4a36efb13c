"""What the models of a job share: names people choose from, kinds of values, and how a mistake is said."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

SamplerName = Literal[
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
CHOOSE_THEIR_STEPS: frozenset[SamplerName] = frozenset({"dpm_fast", "dpm_adaptive"})
"""Samplers that do not step where they are told."""

SchedulerName = Literal[
    "normal",
    "karras",
    "exponential",
    "sgm_uniform",
    "simple",
    "ddim_uniform",
    "beta",
    "linear_quadratic",
    "kl_optimal",
    "AYS SD1",
    "AYS SDXL",
    "AYS SVD",
    "GITS",
]

MAX_SEED = 2**64 - 1


def refuse(field: str, value: object, allowed: str) -> PydanticCustomError:
    """An error of a check across fields that still names one field (relative to the model)."""
    return PydanticCustomError(
        "not_allowed", "allowed: {allowed}", {"field": field, "value": value, "allowed": allowed}
    )


def _no_flag(value: Any) -> Any:
    """To Python `cfg: true` is 1: surely not what was meant."""
    if isinstance(value, bool):
        raise refuse("", value, "a number")
    return value


def _writable(text: str) -> str:
    """Lone surrogates are text to Python, and cannot be written anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refuse("", ascii(text), "text in valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]
Whole = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]
Guidance = Annotated[Number, Field(ge=0, le=100)]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]


def at(position: int) -> dict[str, Any]:
    """Forms list fields by position."""
    return {"position": position}


class Frozen(BaseModel):
    """Base of a job's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
