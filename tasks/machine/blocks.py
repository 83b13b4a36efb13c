"""Prefect blocks that say where a machine's things are: `RegionalStore` and `ModelCatalog`.

A process reads one where its environment names it (`block_reading`). Prefect's server and clients find the classes by
the entry point of this module, so importing it takes nothing but Prefect.
"""

from __future__ import annotations

import re
from typing import Annotated

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import AfterValidator, Field, HttpUrl, SecretStr, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

_LOGO = HttpUrl(
    "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9"
    "/assets/block-logos/filesystem.png"
)
"""Prefect's own for file systems: the UI loads it for other block types in any case."""
_DOCUMENTATION = HttpUrl("https://pypi.org/project/prefect-regional-diffusion/")
_WITH_KEYS = re.compile(r"[?#]|://[^@]*:[^@]*@")
"""In an address: a query, a fragment, a user with a password."""
MOST_MODELS = 1000
"""Of a catalog."""


def _without_keys(place: str) -> str:
    if "://" in place and _WITH_KEYS.search(place):
        raise PydanticCustomError("place", "an address without user, password and query")
    return place


def _absolute(place: str) -> str:
    if not place.startswith(("s3://", "/")):
        raise PydanticCustomError("place", "an absolute path, or s3://bucket/prefix")
    return place


def _plain_endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise PydanticCustomError("place", "an http:// or https:// address without user and password")
    return url


Place = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_without_keys)]
Root = Annotated[Place, AfterValidator(_absolute)]
Endpoint = Annotated[Place, AfterValidator(_plain_endpoint)]
ModelName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$")
]


class RegionalStore(Block):
    """Where runs keep latents and pictures, and the keys for it; keys are encrypted by the server.

    Workers with `REGIONAL_STORE_BLOCK=NAME` in their environment read it once a run. An environment variable that is
    set there wins over the field of the same name.

    Example:
        Keep latents and pictures in a bucket of MinIO:
        ```python
        from prefect_regional_diffusion import RegionalStore

        RegionalStore(
            store="s3://latents/team",
            out="s3://pictures/team",
            s3_endpoint="https://minio.example.org",
            s3_key="...",
            s3_secret="...",
        ).save("team")
        ```
    """

    _block_type_name = "Regional Store"
    _block_type_slug = "regional-store"
    _logo_url = _LOGO
    _documentation_url = _DOCUMENTATION

    store: Place | None = Field(
        default=None, title="Store", description="Where latents are kept: a folder or any fsspec URL [REGIONAL_STORE]"
    )
    out: Place | None = Field(
        default=None, title="Pictures", description="Folder for finished pictures and records [REGIONAL_OUT]"
    )
    s3_endpoint: Endpoint | None = Field(
        default=None, title="S3 endpoint", description="Of an S3 server other than Amazon's [REGIONAL_S3_ENDPOINT]"
    )
    s3_region: str | None = Field(
        default=None, title="S3 region", max_length=100, description="Of the bucket [REGIONAL_S3_REGION]"
    )
    s3_key: SecretStr | None = Field(
        default=None, title="S3 key", description="Access key; empty: what the machine has for AWS [REGIONAL_S3_KEY]"
    )
    s3_secret: SecretStr | None = Field(
        default=None, title="S3 secret", validate_default=True, description="Of the access key [REGIONAL_S3_SECRET]"
    )
    options: SecretDict | None = Field(
        default=None,
        title="Other options",
        description="What another file system of fsspec needs, such as keys for gs://",
    )

    @field_validator("s3_secret")
    @classmethod
    def _beside_its_key(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # A key that is wrong by itself is not there.
        if "s3_key" in info.data and (secret is None) != (info.data["s3_key"] is None):
            raise PydanticCustomError("pair", "a value if s3_key has one, and none without")
        return secret


class ModelCatalog(Block):
    """Models of a fleet by name: jobs name them, machines fetch them.

    Workers with `REGIONAL_CATALOG_BLOCK=NAME` in their environment read it once a run. What a name stands for is read
    only where the worker lets jobs read it; roots of the catalog count as far as its `REGIONAL_CATALOG_ROOTS` goes.

    Example:
        Two models of a bucket, and one of the Hugging Face hub:
        ```python
        from prefect_regional_diffusion import ModelCatalog

        ModelCatalog(
            models={
                "sdxl": "s3://models/team/sdxl.safetensors",
                "flux-dev": "s3://models/team/flux-dev",
                "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5:fp16",
            },
            roots=["s3://models/team"],
        ).save("team")
        ```
    """

    _block_type_name = "Model Catalog"
    _block_type_slug = "model-catalog"
    _logo_url = _LOGO
    _documentation_url = _DOCUMENTATION

    models: dict[ModelName, Place] = Field(
        default={},
        title="Models",
        max_length=MOST_MODELS,
        description="Places by name: s3://bucket/name, an absolute path, or a repository of the hub (org/name)",
    )
    roots: list[Root] = Field(
        default=[],
        title="Roots",
        max_length=100,
        description="Where these lie: folders and s3://bucket/prefix; workers decide which of them they read",
    )

    @field_validator("models")
    @classmethod
    def _embedded_is_ours(cls, models: dict[str, str]) -> dict[str, str]:
        if "embedded" in models:
            raise PydanticCustomError("name", "names other than embedded, which comes with the package")
        return models
