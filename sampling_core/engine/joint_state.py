"""State to and from named tensors, as safetensors wants them: bit-equal, no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.joint_run import Plan, State, start
from prefect_regional_diffusion.sampling_core.solvers.base import check_memory, memory_specs
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec, check_specs


def to_tensors(plan: Plan, state: State) -> dict[str, Tensor]:
    """Named tensors: `step`, `x`, and `solver.<participant>.<field>` for each solver that remembers something.

    The others are as they begin, and other runs that begin like this one may have other participants there.
    """
    tensors = {"step": torch.tensor(state.step), "x": state.x}
    for i in plan.with_history(state.step):
        tensors |= {f"solver.{i}.{name}": value for name, value in state.solvers[i]._asdict().items()}
    # Cloned, because a solver may remember x itself, and safetensors writes no tensor twice.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def specs(plan: Plan, shape: Sequence[int], step: int) -> dict[str, TensorSpec]:
    """What `to_tensors` writes after `step` steps, of latents of this shape. Raises ValueError for no step of it."""
    if not 0 <= step <= plan.steps:
        raise ValueError(f"step {step} of {plan.steps}")
    x = torch.empty(*shape, device="meta")
    tensor_specs = {"step": TensorSpec(torch.int64, ()), "x": TensorSpec(x.dtype, tuple(x.shape))}
    for i in plan.with_history(step):
        memory = memory_specs(plan.participants[i].solver.init(x))
        tensor_specs |= {f"solver.{i}.{name}": spec for name, spec in memory.items()}
    return tensor_specs


def from_tensors(plan: Plan, shape: Sequence[int], tensors: Mapping[str, Tensor]) -> State:
    """The state that `to_tensors` wrote, of a run of this plan with latents of this shape.

    Raises KeyError or ValueError for anything else: other tensors, types, shapes, or what a solver cannot go on with.
    """
    step, x = int(tensors["step"]), tensors["x"]
    check_specs(tensors, specs(plan, shape, step))
    initial, participants = start(plan, x, step), plan.with_history(step)
    solvers = tuple(
        type(new)(**{name: tensors[f"solver.{i}.{name}"].to(x.device) for name in new._fields})
        if i in participants
        else new
        for i, new in enumerate(initial.solvers)
    )
    for i in participants:
        check_memory(solvers[i], plan.sigma_schedule, step, plan.levels)
    return initial._replace(solvers=solvers)
