"""How commands draw: plainly in this process or, where a Prefect server is to know of it, as flow runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_regional_diffusion.flows.server.configured import may_be_configured
from prefect_regional_diffusion.sampling_core.errors import BadInput

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from prefect_regional_diffusion.flows.server.temporary import TemporaryServer

AsFlowRun = Annotated[
    bool,
    typer.Option("--flow", help="As a flow run also where no Prefect server is configured: on a temporary one."),
]


@dataclass(frozen=True)
class Server:
    """Where flow runs are shown: the configured server, or a temporary one, which begins to start."""

    temporary: TemporaryServer | None

    def flow(self, name: str) -> Callable[..., Coroutine[Any, Any, dict[str, Any]]]:
        """The flow `render`, `grid` or `batch`, once the server answers."""
        if self.temporary is not None:
            from prefect.context import refresh_global_settings_context

            # Prefect's threads read settings as well, and they do not know this one's context.
            os.environ["PREFECT_API_URL"] = self.temporary.address()
            os.environ["PREFECT_API_AUTH_STRING"] = self.temporary.auth_string
            refresh_global_settings_context()
        return getattr(import_module(f"prefect_regional_diffusion.flows.{name}"), name)


def server_for(as_flow_run: bool) -> Server | None:
    """The server that is configured or, if a flow run is asked for, a temporary one; None: commands draw by themselves.

    Prefect is not imported for that where nobody has configured it.
    """
    if may_be_configured():
        from prefect.settings import get_current_settings

        from prefect_regional_diffusion.flows.server.local import use_auth_string

        use_auth_string()
        if get_current_settings().api.url:
            return Server(None)
    if not as_flow_run:
        return None
    from prefect_regional_diffusion.flows.server.temporary import TemporaryServer

    return Server(TemporaryServer())


def client_of_server() -> PrefectClient:
    """A client of the server at PREFECT_API_URL. Raises BadInput where that names none."""
    from prefect import get_client
    from prefect.settings import get_current_settings

    from prefect_regional_diffusion.flows.server.local import use_auth_string

    if not get_current_settings().api.url:
        raise BadInput("PREFECT_API_URL", "", "the address of a Prefect server, such as http://127.0.0.1:4200/api")
    use_auth_string()
    return get_client()
