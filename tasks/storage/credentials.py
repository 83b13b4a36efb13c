"""How to reach a store: endpoint and keys, from settings or a Prefect block. They never travel with a job."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine.secrets import hide_keys
from prefect_regional_diffusion.tasks.machine.store_settings import store_settings

_NO_OPTIONS = ("", "file", "local", "memory")


def storage_options(url: str) -> dict[str, Any]:
    """What fsspec needs beside the URL. Raises BadInput for half a pair of keys, ServerError for a missing block.

    Without keys in the settings and in the block that they name, s3fs looks where all AWS tools look: environment,
    profile, machine role.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme in _NO_OPTIONS:
        return {}
    hide_keys()
    options = store_settings().options
    if scheme not in ("s3", "s3a"):
        return options
    # Else s3fs asks for an object's size before it reads it, to read large ones in parts; those here are small.
    return {"max_concurrency": 1} | options | _s3_options()


def _s3_options() -> dict[str, Any]:
    config = store_settings()
    if (config.s3_key is None) != (config.s3_secret is None):
        missing = "REGIONAL_S3_SECRET" if config.s3_secret is None else "REGIONAL_S3_KEY"
        raise BadInput(missing, None, "a value (key and secret go together)")
    options: dict[str, Any] = {}
    if config.s3_key is not None and config.s3_secret is not None:
        options |= {"key": config.s3_key.get_secret_value(), "secret": config.s3_secret.get_secret_value()}
    if config.s3_endpoint is not None:
        options["endpoint_url"] = _endpoint(config.s3_endpoint)
    if config.s3_region is not None:
        options["client_kwargs"] = {"region_name": config.s3_region}
    return options


def _endpoint(url: str) -> str:
    """Raises BadInput for one with a user: libraries repeat it in their errors, and S3 has keys of its own."""
    if "@" in url:
        raise BadInput(
            "REGIONAL_S3_ENDPOINT", url, "an address without user and password (keys go elsewhere: REGIONAL_S3_KEY)"
        )
    return url
