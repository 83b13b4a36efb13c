"""State to and from named tensors, as safetensors wants them: bit-equal, no pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sampling_core.sampler import Plan, State, start


def to_tensors(state: State) -> dict[str, Tensor]:
    """Named tensors: `step`, `x`, and `solver.<participant>.<field>` for each solver's state."""
    named = {"step": torch.tensor(state.step), "x": state.x}
    for i, solver in enumerate(state.solvers):
        named |= {f"solver.{i}.{name}": value for name, value in solver._asdict().items()}
    # Cloned, because a fresh solver may remember x itself, and safetensors writes no tensor twice.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()}


def from_tensors(plan: Plan, tensors: Mapping[str, Tensor]) -> State:
    """The state that `to_tensors` wrote. Raises KeyError if it belongs to another plan."""
    x = tensors["x"]
    fresh = start(plan, x)
    solvers = tuple(
        type(empty)(**{name: tensors[f"solver.{i}.{name}"].to(x.device) for name in empty._fields})
        for i, empty in enumerate(fresh.solvers)
    )
    return State(int(tensors["step"]), x, solvers)
