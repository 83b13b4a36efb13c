"""What tests put around every annotated call of the core: types are checked by beartype, shapes by the code below.

`jaxtyping` does the same for shapes, with more of its own work than what is called takes on small tensors. Here it is
what annotations are written with.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from typing import Any, cast, get_args, get_type_hints

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable

# An int is fine where a float is asked for, as for the static checker.
_CONF = BeartypeConf(is_pep484_tower=True)
_typed = beartype(conf=_CONF)


class _Calls(threading.local):
    """This thread's innermost call that has axes, and the sizes that they have got so far."""

    sizes: dict[str, int] | None = None


_calls = _Calls()


def install(modules: list[str]) -> None:
    """Check these modules whenever they are imported from now on."""
    tensors: Any = type(jaxtyping.AbstractArray)
    tensors.__instancecheck__, tensors.__instancecheck_str__ = _fits, _misfit
    jaxtyping.install_import_hook(modules, f"{__name__}.checked")
    # The hook decorates every function and class with it.
    jaxtyping.jaxtyped = lambda typechecker: typechecker


def checked(made: Any) -> Any:
    """A function, or a dataclass, whose arguments and result are checked. Raises `BeartypeCallHintViolation`.

    An axis has one size within a call. Of a generator, the arguments are checked, by `TypeCheckError`.
    """
    if isinstance(made, type):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = checked(made.__init__)
        return made
    made.__annotations__ = {name: _hint(made, hint) for name, hint in made.__annotations__.items()}
    if inspect.isgeneratorfunction(made):
        return _generator(made)
    typed = cast("Callable[..., Any]", _typed(made))
    return _with_axes_of_its_own(typed) if any(map(_has_axes, made.__annotations__.values())) else typed


def _hint(function: Callable[..., Any], hint: Any) -> Any:
    """An annotation as a type, or Any if its names are not there yet."""
    stand_in = cast("Callable[..., Any]", lambda: None)
    stand_in.__annotations__ = {"return": hint}
    try:
        return get_type_hints(stand_in, function.__globals__, include_extras=True)["return"]
    except NameError:
        return Any


def _has_axes(hint: Any) -> bool:
    """Whether there are tensors with named axes in a type."""
    return (isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(_has_axes, get_args(hint)))


def _fits(hint: Any, value: object) -> bool:
    return not _misfit(hint, value)


def _misfit(hint: Any, value: object) -> str:
    """Why a value is no tensor of such a type, or of sizes that its axes have not in this call; or nothing."""
    if not isinstance(value, torch.Tensor):
        return "it is no tensor"
    found = _sizes(hint, value.dtype, value.shape)
    if isinstance(found, str):
        return found
    known = _calls.sizes
    if known is not None:
        for axis, size in found.items():
            if known.get(axis, size) != size:
                return f"{axis} is {size} there, and {known[axis]} elsewhere"
        known.update(found)
    return ""


@lru_cache(maxsize=10_000)
def _sizes(hint: Any, dtype: torch.dtype, shape: torch.Size) -> dict[str, int] | str:
    """The sizes that a tensor gives the named axes of its type; or why it is of another type."""
    if str(dtype).removeprefix("torch.") not in hint.dtypes:
        return f"it is of {dtype}"
    assert hint.array_type is torch.Tensor
    axes: list[str] = hint.dim_str.split()
    any_before = axes[:1] == ["..."]
    axes = axes[any_before:]
    assert all(axis.isidentifier() or axis.isdigit() for axis in axes), f"{hint.dim_str!r} has more than names"
    if len(shape) < len(axes) or (len(shape) > len(axes) and not any_before):
        return f"it has {len(shape)} axes"
    found: dict[str, int] = {}
    for axis, size in zip(axes, shape[len(shape) - len(axes) :], strict=True):
        known = int(axis) if axis.isdigit() else found.setdefault(axis, size)
        if known != size:
            return f"{axis} is {size} there, and {known} elsewhere"
    return found


def _with_axes_of_its_own(typed: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(typed)
    def call(*arguments: Any, **named: Any) -> Any:
        outer, _calls.sizes = _calls.sizes, {}
        try:
            return typed(*arguments, **named)
        finally:
            _calls.sizes = outer

    return call


def _generator(made: Callable[..., Any]) -> Callable[..., Any]:
    """beartype's own wrapper would look at the arguments later, among another call's axes."""
    parameters = inspect.signature(made).parameters
    assert all(one.kind is not one.VAR_POSITIONAL for one in parameters.values()), made
    hints = [(name, made.__annotations__[name]) for name in parameters if name in made.__annotations__]

    @_with_axes_of_its_own
    def check(given: dict[str, Any]) -> None:
        for name, hint in hints:
            if name in given and not is_bearable(given[name], hint, conf=_CONF):
                raise jaxtyping.TypeCheckError(f"{made.__qualname__}: {name} is no {hint}")

    @wraps(made)
    def call(*arguments: Any, **named: Any) -> Any:
        check(dict(zip(parameters, arguments, strict=False)) | named)
        return made(*arguments, **named)

    return call
