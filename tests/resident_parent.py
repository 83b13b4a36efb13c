"""A resident process whose children execute a piece of code: `python -m tests.resident_parent FD FD RUNS`.

It is in the variable PREFECT__CODE of a request's environment.
"""

from __future__ import annotations

import os
import sys

from prefect_regional_diffusion.deployments.resident import child, parent


def command(listener: int, keeper: int, most_runs: int) -> list[str]:
    """Its command; as that of `parent`."""
    return [sys.executable, "-m", "tests.resident_parent", *map(str, (listener, keeper, most_runs))]


def steady(variables: dict[str, str]) -> dict[str, str]:
    """An environment without what pytest changes from test to test."""
    return {name: value for name, value in variables.items() if name != "PYTEST_CURRENT_TEST"}


def run_code() -> tuple[int, bool]:
    """In the place of Prefect's engine."""
    return child.ending(lambda: exec(os.environ["PREFECT__CODE"], {}))


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    parent.command = command
    child.run_engine = run_code
    run = parent.main()
    if run is not None:
        run()
