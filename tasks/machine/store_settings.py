"""Where this machine keeps latents and pictures, and with which keys: by its settings, and by a block that they name.

One rule for all fields: a variable that is set in the environment wins over the block, the block over the default. Key
and secret are one field here, so that they are never of two accounts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from prefect_regional_diffusion.tasks.machine.settings import settings

if TYPE_CHECKING:
    from prefect_regional_diffusion.tasks.machine.blocks import RegionalStore

_PAIR = ("s3_key", "s3_secret")


class StoreSettings(NamedTuple):
    """Fields are named as in `Settings` and in the block `RegionalStore`, which describe them."""

    store: str
    out: str
    s3_endpoint: str | None
    s3_region: str | None
    s3_key: SecretStr | None
    s3_secret: SecretStr | None
    options: dict[str, Any]
    """Of fsspec's file system, beside those for S3."""


def store_settings() -> StoreSettings:
    """The store's settings of this process; a block is read once. Raises ServerError or BadInput for a block."""
    config = settings()
    values: dict[str, Any] = {name: getattr(config, name) for name in StoreSettings._fields if name != "options"}
    if config.store_block is None:
        return StoreSettings(**values, options={})
    block = _block(config.store_block)
    set_here = set(config.model_fields_set)
    if not set_here.isdisjoint(_PAIR):
        set_here.update(_PAIR)
    from_block = {name: getattr(block, name) for name in values if name not in set_here}
    values |= {name: value for name, value in from_block.items() if value is not None}
    return StoreSettings(**values, options=block.options.get_secret_value() if block.options else {})


def forget_store_block() -> None:
    """Ask the server anew for the block: a process that has ended a run does so for the next one."""
    _block.cache_clear()


@lru_cache(maxsize=1)
def _block(name: str) -> RegionalStore:
    # Imported late: it takes Prefect, and most machines name no block.
    from prefect_regional_diffusion.tasks.machine.block_reading import read_block
    from prefect_regional_diffusion.tasks.machine.blocks import RegionalStore

    return read_block("REGIONAL_STORE_BLOCK", name, RegionalStore)
