"""The names of models that a fleet has in common: from the block `ModelCatalog` that a machine's settings name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from prefect_regional_diffusion.tasks.machine.settings import settings


class Catalog(NamedTuple):
    """Places of models by name, and the roots under which they lie: not yet checked against this machine's."""

    models: Mapping[str, str]
    roots: tuple[str, ...]


def catalog() -> Catalog:
    """The catalog of this process, which is read once; empty if there is none.

    Raises ServerError or BadInput for its block.
    """
    name = settings().catalog_block
    return Catalog({}, ()) if name is None else _read(name)


def forget_catalog() -> None:
    """Ask the server anew: a process that has ended a run does so for the next one."""
    _read.cache_clear()


@lru_cache(maxsize=1)
def _read(name: str) -> Catalog:
    # Imported late: it takes Prefect, and most machines name no block.
    from prefect_regional_diffusion.tasks.machine.block_reading import read_block
    from prefect_regional_diffusion.tasks.machine.blocks import ModelCatalog

    block = read_block("REGIONAL_CATALOG_BLOCK", name, ModelCatalog)
    return Catalog(block.models, tuple(block.roots))
