"""How to reach a store: endpoint and keys, from settings or a Prefect block. They never travel with a job."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from prefect_regional_diffusion.sampling_core.errors import BadInput, StoreError
from prefect_regional_diffusion.sampling_core.text.plain_text import hide
from prefect_regional_diffusion.tasks.machine.secrets import hide_keys
from prefect_regional_diffusion.tasks.machine.settings import settings

_NO_OPTIONS = ("", "file", "local", "memory")
_NO_KEYS = ("endpoint_url", "region_name", "signature_version", "addressing_style")
"""Options of a block that people may read."""


def storage_options(url: str) -> dict[str, Any]:
    """What fsspec needs beside the URL. Raises BadInput for half a pair of keys, StoreError for a missing block.

    The Prefect block is a `Secret` with a JSON object of options for the store's file system. Without it and
    without keys in the settings, s3fs looks where all AWS tools look: environment, profile, machine role.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme in _NO_OPTIONS:
        return {}
    hide_keys()
    options = dict(_of_block(settings().store_block)) if settings().store_block else {}
    if scheme not in ("s3", "s3a"):
        return options
    # Else s3fs asks for an object's size before it reads it, to read large ones in parts; those here are small.
    return {"max_concurrency": 1} | options | _s3_options()


def _s3_options() -> dict[str, Any]:
    config = settings()
    if (config.s3_key is None) != (config.s3_secret is None):
        missing = "REGIONAL_S3_SECRET" if config.s3_secret is None else "REGIONAL_S3_KEY"
        raise BadInput(missing, None, "a value (key and secret go together)")
    options: dict[str, Any] = {}
    if config.s3_key is not None and config.s3_secret is not None:
        options |= {"key": config.s3_key.get_secret_value(), "secret": config.s3_secret.get_secret_value()}
    if config.s3_endpoint is not None:
        options["endpoint_url"] = _endpoint("REGIONAL_S3_ENDPOINT", config.s3_endpoint)
    if config.s3_region is not None:
        options["client_kwargs"] = {"region_name": config.s3_region}
    return options


def _endpoint(field: str, url: str) -> str:
    """Raises BadInput for one with a user: libraries repeat it in their errors, and S3 has keys of its own."""
    if "@" in url:
        raise BadInput(field, url, "an address without user and password (keys go elsewhere: REGIONAL_S3_KEY)")
    return url


def _texts(options: object) -> Iterator[str]:
    """The texts in a block's options, however deep, that may be keys."""
    if isinstance(options, str):
        yield options
    elif isinstance(options, dict):
        for name, value in cast("dict[Any, object]", options).items():
            if name not in _NO_KEYS:
                yield from _texts(value)
    elif isinstance(options, list):
        for value in cast("list[object]", options):
            yield from _texts(value)


def forget_block() -> None:
    """Ask the server anew for the block's options: a process that has ended a run does so for the next one."""
    _of_block.cache_clear()


@lru_cache(maxsize=1)
def _of_block(name: str) -> dict[str, Any]:
    """The options in a Prefect Secret block; read once, so that a run keeps what it began with."""
    from prefect.blocks.system import Secret
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise StoreError("REGIONAL_STORE_BLOCK", name, "cannot be read: PREFECT_API_URL names no server")
    try:
        # Prefect would return a coroutine inside an async flow; its types do not know the argument.
        options = Secret.load(name, _sync=True).get()  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        raise StoreError("REGIONAL_STORE_BLOCK", name, "does not exist: the server has no such Secret block") from error
    if not isinstance(options, dict):
        raise StoreError("REGIONAL_STORE_BLOCK", name, "does not hold a JSON object")
    hide(_texts(options))
    if "endpoint_url" in options:
        _endpoint("REGIONAL_STORE_BLOCK", str(options["endpoint_url"]))
    return options
