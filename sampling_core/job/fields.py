"""What the models of a job share: kinds of values, and how a mistake is said."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_SEED = 2**64 - 1


def refuse(field: str, value: object, allowed: str) -> PydanticCustomError:
    """An error of a check across fields that still names one field (relative to the model)."""
    return PydanticCustomError(
        "not_allowed", "allowed: {allowed}", {"field": field, "value": value, "allowed": allowed}
    )


def _no_flag(value: Any) -> Any:
    """To Python `cfg: true` is 1: surely not what was meant."""
    if isinstance(value, bool):
        raise refuse("", value, "a number")
    return value


def _writable(text: str) -> str:
    """Lone surrogates are text to Python, and cannot be written anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refuse("", ascii(text), "text in valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]
Whole = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]
Guidance = Annotated[Number, Field(ge=0, le=100)]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]


def at(position: int) -> dict[str, Any]:
    """Forms list fields by position."""
    return {"position": position}


class Frozen(BaseModel):
    """Base of a job's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
