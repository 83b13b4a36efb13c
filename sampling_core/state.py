"""State to and from named tensors, as safetensors wants them: bit-equal, no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sampling_core.sampler import Plan, State, start


def to_tensors(plan: Plan, state: State) -> dict[str, Tensor]:
    """Named tensors: `step`, `x`, and `solver.<participant>.<field>` for each solver that remembers something.

    The others are as they begin, and other runs that begin like this one may have other participants there.
    """
    named = {"step": torch.tensor(state.step), "x": state.x}
    for i in plan.remembering(state.step):
        named |= {f"solver.{i}.{name}": value for name, value in state.solvers[i]._asdict().items()}
    # Cloned, because a solver may remember x itself, and safetensors writes no tensor twice.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()}


def from_tensors(plan: Plan, shape: Sequence[int], tensors: Mapping[str, Tensor]) -> State:
    """The state that `to_tensors` wrote, of a run of this plan with latents of this shape.

    Raises KeyError or ValueError if it is of another run.
    """
    step, x = int(tensors["step"]), tensors["x"]
    if x.shape != torch.Size(shape):
        raise ValueError(f"a latent of shape {tuple(x.shape)} in a run of {tuple(shape)}")
    begun, remembering = start(plan, x, step), plan.remembering(step)
    solvers = tuple(
        type(new)(**{name: tensors[f"solver.{i}.{name}"].to(x.device) for name in new._fields})
        if i in remembering
        else new
        for i, new in enumerate(begun.solvers)
    )
    return begun._replace(solvers=solvers)
