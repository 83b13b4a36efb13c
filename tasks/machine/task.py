"""Tasks: what a flow calls. In a flow run each call is a task run that Prefect shows; elsewhere it is a plain call."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, cast

import prefect
from prefect.context import FlowRunContext

P = ParamSpec("P")
R = TypeVar("R")


def in_flow_run() -> bool:
    """Whether this is called in a flow run, so that there is a server to be told of things."""
    return FlowRunContext.get() is not None


class Task(Generic[P, R]):
    """A function, `fn`, that is a task run called `run_name` where there is a flow run."""

    def __init__(self, function: Callable[P, R], run_name: str) -> None:
        self.fn, self.run_name = function, run_name
        # Results stay out of Prefect's store: what it reads back may name a pickle serializer.
        made: Any = prefect.task(task_run_name=run_name, persist_result=False)(function)
        self._recorded = cast("Callable[P, R]", made)
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._recorded(*args, **kwargs) if in_flow_run() else self.fn(*args, **kwargs)


def task(run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A decorator; `run_name` is what task runs are called, with the function's parameters in braces."""
    return lambda function: Task(function, run_name)
