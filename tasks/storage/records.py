"""Records: what the store says of runs and of finished jobs, as JSON. What is not exactly such a record is absent."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.tasks.storage.keys import HASH, RecordKey
from prefect_regional_diffusion.tasks.storage.store import Store

Digest = Annotated[str, Field(pattern=f"^{HASH}$")]
"""SHA-256 in hex."""


class Record(BaseModel):
    """Has the fields that it is declared with, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=Record)


def read_record(store: Store, key: RecordKey, model: type[M]) -> M | None:
    """A record of the store; None if there is none, or something else in its place."""
    value = store.read_json(key)
    if value is None:
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))[:80] or "what it says as a whole"
        reason = f"{field} is not allowed in a record"
    except (RegionalError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        reason = type(error).__name__
    store.tell_unfit(key, ValueError(reason))
    return None
