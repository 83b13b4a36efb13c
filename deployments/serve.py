"""Serve the flow `render` from this machine: `python -m deployments.serve` (needs a running Prefect server).

The deployment `render/render` then has a form in the UI; runs execute here, one after the other.
"""

from __future__ import annotations

from flows.render import render


def main() -> None:
    render.serve(
        name="render",
        description="Draw one picture from a base prompt and regions with prompts of their own.",
        tags=["regional"],
        limit=1,
        pause_on_shutdown=False,
    )


if __name__ == "__main__":
    main()
