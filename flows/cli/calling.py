"""How commands call flows: plainly in this process or, where a Prefect server is to know of them, as flow runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from prefect import Flow

    from prefect_regional_diffusion.flows.server.temporary import TemporaryServer

P = ParamSpec("P")
R = TypeVar("R")

AsFlowRun = Annotated[
    bool,
    typer.Option("--flow", help="As a flow run also where no Prefect server is configured: on a temporary one."),
]


def server_for(as_flow_run: bool) -> TemporaryServer | None:
    """A temporary server, which begins to start, if a flow run is asked for and no server is configured."""
    from prefect.settings import get_current_settings

    from prefect_regional_diffusion.flows.server.local import use_auth_string

    use_auth_string()
    if not as_flow_run or get_current_settings().api.url:
        return None
    from prefect_regional_diffusion.flows.server.temporary import TemporaryServer

    return TemporaryServer()


def called(flow: Flow[P, R], temporary: TemporaryServer | None) -> Callable[P, Any]:
    """The flow where there is a server, which is waited for; else its plain function: the same body without Prefect."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    if temporary is not None:
        # Prefect's threads read settings as well, and they do not know this one's context.
        os.environ["PREFECT_API_URL"] = temporary.address()
        os.environ["PREFECT_API_AUTH_STRING"] = temporary.auth_string
        refresh_global_settings_context()
    return flow if get_current_settings().api.url else flow.fn
