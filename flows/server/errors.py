"""A Prefect server that does not do what it is asked for, as one line for a person."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.errors import ServerError


def server_error(problem: str) -> ServerError:
    """An error of the server that this process talks to."""
    # Late: the command line imports this, and Prefect takes a second.
    from prefect.settings import PREFECT_API_URL

    return ServerError("Prefect server", PREFECT_API_URL.value() or "", problem)


def no_deployment(name: str) -> ServerError:
    """It does not know the deployment that a run should be of."""
    remedy = "`python -m prefect_regional_diffusion.deployments.up` (`make up`) or `prefect deploy` sets it up"
    return server_error(f"has no deployment {name}: {remedy}")
