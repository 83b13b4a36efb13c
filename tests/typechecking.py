"""What tests put around every annotated call of the core: types are checked by beartype, shapes by jaxtyping.

`jaxtyping.jaxtyped` does the same, but binds a call's arguments to their names, and checks them once more with what is
returned: on small tensors that took longer than what was called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, cast, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is fine where a float is asked for, as for the static checker.
_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def install(modules: list[str]) -> None:
    """Check these modules whenever they are imported from now on."""
    jaxtyping.install_import_hook(modules, f"{__name__}.checked")
    # The hook decorates every function and class with it.
    jaxtyping.jaxtyped = lambda typechecker: typechecker


def checked(made: Any) -> Any:
    """A function, or a dataclass, whose arguments and result are checked. Raises `BeartypeCallHintViolation`.

    An axis has one size within a call. What a generator yields is not checked.
    """
    if isinstance(made, type):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = checked(made.__init__)
        return made
    if inspect.isgeneratorfunction(made):
        # beartype's own wrapper would look at the arguments later, among another call's axes.
        return _jaxtyped(made, typechecker=_typed)
    made.__annotations__ = {name: _hint(made, hint) for name, hint in made.__annotations__.items()}
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


def _with_axes_of_its_own(typed: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(typed)
    def call(*arguments: Any, **named: Any) -> Any:
        with _jaxtyped("context"):
            return typed(*arguments, **named)

    return call
