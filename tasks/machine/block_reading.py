"""Reads a Prefect block that a setting names. What is wrong with it is one line that names the block and its field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from prefect_regional_diffusion.sampling_core.errors import BadInput, ServerError
from prefect_regional_diffusion.sampling_core.job.parsing import allowed_by
from prefect_regional_diffusion.sampling_core.text.plain_text import hide
from prefect_regional_diffusion.tasks.machine.secrets import reason_of

if TYPE_CHECKING:
    from prefect.blocks.core import Block

B = TypeVar("B", bound="Block")


def read_block(setting: str, name: str, kind: type[B]) -> B:
    """The block of a kind that a setting names, from the server of this process. What it keeps secret is hidden.

    Raises ServerError if it cannot be read, BadInput for a field that is not allowed.
    """
    slug = kind.get_block_type_slug()
    data = _document(setting, name, slug, str(kind.get_block_type_name()))
    secret_fields = {str(path).partition(".")[0] for path in kind.model_json_schema()["secret_fields"]}
    hide(_texts({field: data[field] for field in secret_fields & data.keys()}))
    try:
        block = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        found = "…" if first["loc"][0] in secret_fields else first["input"]
        allowed = allowed_by(first["type"], first.get("ctx", {}), first["msg"])
        raise BadInput(f"{slug}/{name}.{path}", found, allowed) from None
    unknown = next((field for field in data if field not in kind.model_fields), None)
    if unknown is not None:
        raise BadInput(f"{slug}/{name}", unknown, f"fields {', '.join(kind.model_fields)}")
    return block


def _document(setting: str, name: str, slug: str, kind_name: str) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise ServerError(setting, name, "cannot be read: PREFECT_API_URL names no server")
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(name, slug, include_secrets=True)
    except ObjectNotFound as error:
        raise ServerError(setting, name, f"does not exist: the server has no such {kind_name} block") from error
    except Exception as error:  # the client has its own and those of its libraries
        raise ServerError(setting, name, f"cannot be read from the server: {reason_of(error)}") from error
    return {field: value for field, value in document.data.items() if field != "block_type_slug"}


def _texts(value: object) -> Iterator[str]:
    """The texts in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[Any, object]", value).values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in cast("list[object]", value):
            yield from _texts(part)
