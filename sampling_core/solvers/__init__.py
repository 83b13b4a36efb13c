"""Samplers by the names that users know. One file a method; `base` has the contract."""

from __future__ import annotations

from typing import Any

from sampling_core.errors import BadInput
from sampling_core.solvers.base import Query, Solver, Step
from sampling_core.solvers.dpmpp_2m import DPMpp2M
from sampling_core.solvers.euler import Euler
from sampling_core.solvers.heun import Heun

SOLVERS: dict[str, Solver[Any]] = {
    "euler": Euler(),
    "heun": Heun(),
    "dpmpp_2m": DPMpp2M(),
}


def solver_named(name: str, field: str = "sampler") -> Solver[Any]:
    """The solver with this name. Raises BadInput for an unknown one."""
    if name not in SOLVERS:
        raise BadInput(field, name, ", ".join(SOLVERS))
    return SOLVERS[name]


__all__ = ["SOLVERS", "Query", "Solver", "Step", "solver_named"]
