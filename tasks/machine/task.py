"""Tasks: what a flow calls. In a flow run each call is a task run that Prefect shows; elsewhere it is a plain call.

Prefect takes a second to import, so it is imported where a first call is to be shown. Without a flow run it never is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, cast

from prefect_regional_diffusion.tasks.machine.prefect_logs import make_logs_plain

P = ParamSpec("P")
R = TypeVar("R")


def in_flow_run() -> bool:
    """Whether this is called in a flow run, so that there is a server that shows artifacts and task runs."""
    # Where nobody has imported Prefect, there is no flow run.
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


class Task(Generic[P, R]):
    """A function, `fn`, that is a task run called `run_name` where there is a flow run."""

    def __init__(self, function: Callable[P, R], run_name: str) -> None:
        self.fn, self.run_name = function, run_name
        update_wrapper(self, function)

    @cached_property
    def _prefect_task(self) -> Callable[P, R]:
        """The same function as a task of Prefect's."""
        import prefect

        make_logs_plain()
        # Results stay out of Prefect's store: what it reads back may name a pickle serializer.
        prefect_task: Any = prefect.task(task_run_name=self.run_name, persist_result=False)(self.fn)
        return cast("Callable[P, R]", prefect_task)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._prefect_task(*args, **kwargs) if in_flow_run() else self.fn(*args, **kwargs)


def task(run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A decorator; `run_name` is what task runs are called, with the function's parameters in braces."""
    return lambda function: Task(function, run_name)
