"""Defaults of environment variables that torch and Prefect read when they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def set_defaults() -> None:
    """To be called before torch and Prefect are imported; what the user has set stays."""
    defaults = {
        # Threads that wait by spinning starve each other: 50 times slower beside another busy process.
        "OMP_WAIT_POLICY": "PASSIVE",
        # The command line says itself what went wrong; Prefect would print tracebacks.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        # Prefect's own server reports home by default, and its write can collide with a first run's.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # PostgreSQL may end one of two requests that wait for each other. Prefect's server does not try again.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        # Prefect would start a server that outlives a killed command, with its database in the user's home.
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # They would warn of prompts longer than the model's, and so does this command, with the number.
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Prefect's services report under their own names what they could not deliver when a process ends, and asyncio
    # every connection to a store that is away, with a traceback; of the store, `tasks.storage.retry` says so.
    for name in ("EventsWorker", "APILogWorker", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Nothing is kept there, so a home that cannot be written is no loss.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")


def trust_the_caller() -> None:
    """People at their own command line may name whatever they can reach; what comes over a server may not.

    To be called before settings are read, by commands that do the work in their own process. Variables that look like
    settings and are none are warned of.
    """
    for name, value in {
        "REGIONAL_ASSET_ROOTS": "/",
        "REGIONAL_MODEL_STORES": "*",
        "REGIONAL_CATALOG_ROOTS": "*",
        "REGIONAL_ALLOWED_STORES": "*",
        "REGIONAL_ALLOWED_OUTPUTS": "*",
    }.items():
        os.environ.setdefault(name, value)
    if os.environ.get("REGIONAL_STORE_BLOCK") or os.environ.get("REGIONAL_CATALOG_BLOCK"):
        from prefect_regional_diffusion.flows.server.local import use_auth_string

        use_auth_string()
    # Late, because pydantic takes a while, too, and some commands need no settings.
    from prefect_regional_diffusion.sampling_core.text.plain_text import plain
    from prefect_regional_diffusion.tasks.machine.settings import unknown_variables

    for line in unknown_variables():
        print(f"Warning: {plain(line)}", file=sys.stderr)
