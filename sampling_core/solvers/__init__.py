"""Samplers by the names that users know. One file a method or family; `base` has the contract."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import CFG_PP
from prefect_regional_diffusion.sampling_core.solvers.ancestral import EulerAncestral
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoisedPrediction,
    Interval,
    Noise,
    Query,
    Solver,
    Step,
)
from prefect_regional_diffusion.sampling_core.solvers.cfg_pp import EulerAncestralCfgPP, EulerCfgPP
from prefect_regional_diffusion.sampling_core.solvers.ddpm import DDPM
from prefect_regional_diffusion.sampling_core.solvers.deis import DEIS
from prefect_regional_diffusion.sampling_core.solvers.dpm_2 import DPM2, DPM2Ancestral
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import DPMAdaptive, DPMFast
from prefect_regional_diffusion.sampling_core.solvers.dpmpp_2m import DPMpp2M, DPMpp2MCfgPP
from prefect_regional_diffusion.sampling_core.solvers.dpmpp_2s_ancestral import DPMpp2SAncestral, DPMpp2SAncestralCfgPP
from prefect_regional_diffusion.sampling_core.solvers.dpmpp_multistep_sde import DPMpp2MSDE, DPMpp3MSDE
from prefect_regional_diffusion.sampling_core.solvers.dpmpp_sde import DPMppSDE
from prefect_regional_diffusion.sampling_core.solvers.er_sde import ERSDE
from prefect_regional_diffusion.sampling_core.solvers.euler import Euler
from prefect_regional_diffusion.sampling_core.solvers.gradient_estimation import GradientEstimation
from prefect_regional_diffusion.sampling_core.solvers.heun import Heun
from prefect_regional_diffusion.sampling_core.solvers.heunpp2 import HeunPP2
from prefect_regional_diffusion.sampling_core.solvers.ipndm import IPNDM, IPNDMV
from prefect_regional_diffusion.sampling_core.solvers.lcm import LCM
from prefect_regional_diffusion.sampling_core.solvers.lms import LMS
from prefect_regional_diffusion.sampling_core.solvers.res_multistep import RESMultistep
from prefect_regional_diffusion.sampling_core.solvers.sa_solver import SASolver
from prefect_regional_diffusion.sampling_core.solvers.seeds import SEEDS2, SEEDS3
from prefect_regional_diffusion.sampling_core.solvers.uni_pc import UniPC

_METHODS: dict[str, Solver[Any]] = {
    "euler": Euler(),
    "euler_cfg_pp": EulerCfgPP(),
    "euler_ancestral": EulerAncestral(),
    "euler_ancestral_cfg_pp": EulerAncestralCfgPP(),
    "heun": Heun(),
    "heunpp2": HeunPP2(),
    "dpm_2": DPM2(),
    "dpm_2_ancestral": DPM2Ancestral(),
    "lms": LMS(),
    "dpm_fast": DPMFast(),
    "dpm_adaptive": DPMAdaptive(),
    "dpmpp_2s_ancestral": DPMpp2SAncestral(),
    "dpmpp_2s_ancestral_cfg_pp": DPMpp2SAncestralCfgPP(),
    "dpmpp_sde": DPMppSDE(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m_cfg_pp": DPMpp2MCfgPP(),
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "dpmpp_2m_sde_heun": DPMpp2MSDE(heun=True),
    "dpmpp_3m_sde": DPMpp3MSDE(),
    "ddpm": DDPM(),
    "lcm": LCM(),
    "ipndm": IPNDM(),
    "ipndm_v": IPNDMV(),
    "deis": DEIS(),
    "res_multistep": RESMultistep(),
    "res_multistep_cfg_pp": RESMultistep(cfg_pp=True),
    "res_multistep_ancestral": RESMultistep(ancestral=True),
    "res_multistep_ancestral_cfg_pp": RESMultistep(ancestral=True, cfg_pp=True),
    "gradient_estimation": GradientEstimation(),
    "gradient_estimation_cfg_pp": GradientEstimation(cfg_pp=True),
    "er_sde": ERSDE(),
    "seeds_2": SEEDS2(),
    "seeds_3": SEEDS3(),
    "sa_solver": SASolver(),
    "sa_solver_pece": SASolver(pece=True),
    # DDIM with eta 0 is Euler's method (Song et al. 2020); the originals differ in how they mask it.
    "ddim": Euler(),
    "uni_pc": UniPC(),
    "uni_pc_bh2": UniPC(bh2=True),
}

_ALONG_A_PATH = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
_GPU = {f"{name}_gpu": _METHODS[name] for name in _ALONG_A_PATH}
"""In ComfyUI, these differ in where the Brownian path is drawn; the formula is the same."""

SOLVERS = _METHODS | _GPU
BROWNIAN = frozenset({*_ALONG_A_PATH, *_GPU})
"""Samplers whose noise is the increments of one Brownian path."""


def solver_named(name: str, field: str = "sampler") -> Solver[Any]:
    """The solver with this name. Raises BadInput for an unknown one."""
    if name not in SOLVERS:
        raise BadInput(field, name, ", ".join(SOLVERS))
    return SOLVERS[name]


__all__ = [
    "BROWNIAN",
    "CFG_PP",
    "SOLVERS",
    "DenoisedPrediction",
    "Interval",
    "Noise",
    "Query",
    "Solver",
    "Step",
    "solver_named",
]
