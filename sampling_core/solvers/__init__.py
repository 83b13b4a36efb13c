"""Samplers by the names that users know. One file a method or family; `base` has the contract.

A file with a method says in `SAMPLERS` which names it has; the names themselves are in `sampling_core/names.py`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_args

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoisedPrediction,
    DenoiseRequest,
    Noise,
    Samplers,
    Solver,
    Step,
    StepContext,
)


def _all_samplers() -> Samplers:
    """The samplers of all files here, in the order of their names in `SamplerName`: none is missing, none too many."""
    samplers: Samplers = {}
    for module in iter_modules(__path__):
        samplers |= getattr(import_module(f"{__name__}.{module.name}"), "SAMPLERS", {})
    names: tuple[str, ...] = get_args(SamplerName)
    assert samplers.keys() == set(names), (
        f"names without a solver, or solvers without a name: {samplers.keys() ^ set(names)}"
    )
    return {name: samplers[name] for name in names}


SOLVERS = _all_samplers()
BROWNIAN = frozenset(name for name, solver in SOLVERS.items() if solver.brownian)
"""Samplers whose noise is the increments of one Brownian path."""


def solver_named(name: str, field: str = "sampler") -> Solver[Any]:
    """The solver with this name. Raises BadInput for an unknown one."""
    if name not in SOLVERS:
        raise BadInput(field, name, ", ".join(SOLVERS))
    return SOLVERS[name]


__all__ = [
    "BROWNIAN",
    "SOLVERS",
    "DenoiseRequest",
    "DenoisedPrediction",
    "Noise",
    "Solver",
    "Step",
    "StepContext",
    "solver_named",
]
