"""What a configuration may say: a table of keys, types and bounds for each class that is loaded.

Only the values in these tables reach the libraries, so a key that is missing here has no effect. It is refused all the
same, because the model would not be the one that was meant. A family of models adds its tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

Shape = tuple[int, ...]
Count = Annotated[int, Field(ge=1, le=64)]
"""How many of something that has weights of its own: layers, levels."""
Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels, features, heads."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
Layers = Annotated[int, Field(ge=1, le=32)]
PerLevel = Annotated[list[Width], Field(min_length=1, max_length=8)]
Kernel = Literal[1, 3, 5, 7]
PixelCount = Annotated[int, Field(ge=1, le=8192)]
OF_DIFFUSERS = frozenset({"_diffusers_version", "_name_or_path", "_use_default_values"})
"""Notes that diffusers writes into every configuration."""
C = TypeVar("C", bound="Configuration")


class Configuration(BaseModel):
    """The keys of one configuration file that are used, with the libraries' defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    ONLY: ClassVar[Mapping[str, object]] = {}
    """Keys that are accepted with this one value: the class' name, or a feature that is switched off."""
    NOTES: ClassVar[frozenset[str]] = frozenset()
    """Keys that are accepted with any plain value: notes about training and versions, which change no picture."""

    @model_validator(mode="before")
    @classmethod
    def _without_notes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known_values: dict[str, Any] = {}
        for key, value in data.items():
            if key in cls.ONLY:
                if value is not None and (value != cls.ONLY[key] or type(value) is not type(cls.ONLY[key])):
                    raise _refusal(key, f"is {plain_value(value)}, and may only be {json.dumps(cls.ONLY[key])}")
            elif key in cls.NOTES:
                if not _is_plain(value):
                    raise _refusal(key, "should be text, a number, or a short list of them")
            elif key in cls.model_fields:
                known_values[key] = value
            elif value not in (None, "", [], {}):
                raise _refusal(key, f"is no key that a {cls.__name__} is known to have")
        return known_values

    @classmethod
    def read(cls: type[C], files: ModelFiles, name: str) -> C:
        """Check one file of a model folder. Raises ModelError, which names the file, the key and what is allowed."""
        return cls.checked(files.mapping(name), files, name)

    @classmethod
    def checked(cls: type[C], values: object, files: ModelFiles, name: str) -> C:
        """Check what was read of a file. Raises ModelError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise files.error(f"has a configuration that is not known here ({name}: {_first_mistake(error)})") from None


class NetworkConfiguration(Configuration):
    """The configuration of a part with weights: it knows what has to be in their files."""

    SPARE: ClassVar[frozenset[str]] = frozenset()
    """Tensors that files may have and the network does not, by canonical name."""

    @property
    def least_tensors(self) -> int:
        """A number of tensors that the network has at least: a file with fewer is not worth building it."""
        raise NotImplementedError

    def edges(self) -> dict[str, Shape]:
        """Shapes of a few tensors that tell whether the weights are of this network."""
        raise NotImplementedError

    @staticmethod
    def canonical_name(name: str) -> str:
        """The name that a tensor has in the current release; files have the names of the release that wrote them.

        Names of one tensor that a network shares have the same canonical name.
        """
        return name

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of the network that follow from its configuration and are in no file, by canonical name."""
        return {}

    @staticmethod
    def overflows(name: str) -> bool:
        """Whether float16 is too narrow for what is computed with this tensor; it then stays float32."""
        return False


def check_levels(levels: int, *per_level: object) -> None:
    """Raise ValueError for a list that does not have one item for each level of a network."""
    if any(isinstance(items, list) and len(items) != levels for items in per_level):
        raise ValueError(f"lists of {levels} items each, as many as block_out_channels has")


def _first_mistake(error: ValidationError) -> str:
    """The first mistake: the key, what was found, what is allowed."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return first["msg"]
    # Beside keys and positions, pydantic names the branch of a union here.
    where = [str(first["loc"][0]), *(str(step) for step in first["loc"][1:] if isinstance(step, int))]
    stated = "" if first["type"] == "missing" else f" is {plain_value(first['input'])}"
    return f"{'.'.join(where)}{stated}: {first['msg']:.200}"


def _refusal(key: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("not_known", "{key} {says}", {"key": plain_value(key), "says": problem})


def _is_plain(value: Any) -> bool:
    """Whether a value is a short one, and holds nothing that is nested further."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return len(value) <= 100 and not any(isinstance(item, dict | list) for item in value)
    return True
