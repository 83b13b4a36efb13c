"""What the models of a job share: types of values, base classes, and the error of a check."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

MAX_SEED = 2**64 - 1


def validation_error(field: str, value: object, allowed: str) -> PydanticCustomError:
    """An error of a check across fields that still names one field (relative to the model)."""
    return PydanticCustomError(
        "not_allowed", "allowed: {allowed}", {"field": field, "value": value, "allowed": allowed}
    )


def _no_flag(value: Any) -> Any:
    """To Python `cfg: true` is 1: surely not what was meant."""
    if isinstance(value, bool):
        raise validation_error("", value, "a number")
    return value


def _writable(text: str) -> str:
    """Lone surrogates are text to Python, and cannot be written anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise validation_error("", ascii(text), "text in valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]
StrictInt = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]
GuidanceScale = Annotated[Number, Field(ge=0, le=100)]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]


def _number_fields(schema: dict[str, Any]) -> None:
    """Prefect's forms sort fields by `position`, else by name: so they stand in the order of their declaration."""
    for position, field in enumerate(schema.get("properties", {}).values(), start=1):
        field["position"] = position


def _open_and_numbered(schema: dict[str, Any]) -> None:
    _number_fields(schema)
    schema.pop("additionalProperties", None)


class FrozenModel(BaseModel):
    """Base of a job's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_number_fields)


class OpenFrozenModel(FrozenModel):
    """Base of parts with fields that forms do not show, and callers may write: a closed schema would refuse those.

    The schema alone is open. The model itself refuses what it does not know.
    """

    model_config = ConfigDict(json_schema_extra=_open_and_numbered)


class AnyOf:
    """Annotates a union told apart by a tag. Its schema is `anyOf`: forms switch between its members, which they cannot
    with `oneOf`.
    """

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        json_schema["anyOf"] = json_schema.pop("oneOf")
        json_schema.pop("discriminator", None)
        return json_schema
