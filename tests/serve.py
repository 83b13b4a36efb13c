"""The flow `render` served by one process, without a work pool (for tests of a server)."""

from __future__ import annotations

import os

from prefect_regional_diffusion.flows.common.environment import set_defaults


def main() -> None:
    # A served run is watched in the UI: there, logs are wanted.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    set_defaults()
    from prefect.types.entrypoint import EntrypointType

    from prefect_regional_diffusion.flows.render import render

    render.serve(
        name="render",
        description="Draw one picture from a base prompt and regions with prompts of their own.",
        tags=["regional"],
        limit=1,
        pause_on_shutdown=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


if __name__ == "__main__":
    main()
