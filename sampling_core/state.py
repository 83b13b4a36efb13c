"""State to and from named tensors, as safetensors wants them: bit-equal, no pickle."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sampling_core.sampler import State


def to_tensors(state: State, taken_part: Collection[int]) -> dict[str, Tensor]:
    """Named tensors: `step`, `x`, and `solver.<participant>.<field>` for the state of each solver that took part.

    The others are as they began, and other runs that begin like this one may have other participants there.
    """
    named = {"step": torch.tensor(state.step), "x": state.x}
    for i in taken_part:
        named |= {f"solver.{i}.{name}": value for name, value in state.solvers[i]._asdict().items()}
    # Cloned, because a fresh solver may remember x itself, and safetensors writes no tensor twice.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()}


def from_tensors(start: State, taken_part: Collection[int], tensors: Mapping[str, Tensor]) -> State:
    """The state that `to_tensors` wrote, of a run that began with `start`.

    Raises KeyError or ValueError if it is of another run.
    """
    x = tensors["x"]
    if x.shape != start.x.shape:
        raise ValueError(f"a latent of shape {tuple(x.shape)} in a run of {tuple(start.x.shape)}")
    solvers = tuple(
        type(begun)(**{name: tensors[f"solver.{i}.{name}"].to(x.device) for name in begun._fields})
        if i in taken_part
        else begun
        for i, begun in enumerate(start.solvers)
    )
    return State(int(tensors["step"]), x, solvers)
