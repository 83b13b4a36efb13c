"""Settings of a machine: environment variables `REGIONAL_*`. They change where and how fast, never what is drawn."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sampling_core.errors import BadInput

Keep = Literal["final", "forks", "all"] | Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REGIONAL_", frozen=True)

    store: str = Field(".regional/store", description="Where latents are kept: a folder or any fsspec URL")
    out: str = Field("renders", description="Folder for finished pictures and records")
    device: str = Field("auto", description="`auto` (cuda if there is one, else cpu), or a torch device")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="Of the networks")
    chunk_seconds: float = Field(1.0, gt=0, description="How long a chunk of steps should take, if not given")
    keep: Keep = Field(
        "forks",
        description="States that stay when a run is finished: `final`, `forks` (also those where other jobs can go "
        "on), a number n (every n-th), or `all`",
    )
    store_patience: float = Field(600.0, ge=0, description="Seconds for which a store that fails is tried again")
    chunks_ahead: int = Field(2, ge=0, description="States that may wait to be written while sampling goes on")
    preview_seconds: float = Field(5.0, ge=0, description="How often the UI gets a new preview; 0: never")
    max_rows: int | None = Field(None, gt=0, description="Most network rows of one forward; empty: all at once")
    max_mask_bytes: int = Field(32 * 2**20, gt=0, description="Largest mask file")
    max_mask_pixels: int = Field(64 * 10**6, gt=0, description="Largest mask image")

    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def torch_dtype(self) -> torch.dtype:
        if self.dtype != "auto":
            return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]
        return torch.float16 if self.torch_device().startswith("cuda") else torch.float32

    def check(self) -> None:
        """Raise BadInput for a device that is not there."""
        try:
            torch.empty(0, device=self.torch_device())
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0][:120]
            raise BadInput("REGIONAL_DEVICE", self.device, f"auto, cpu, cuda ({reason})") from error


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once. Raises BadInput for one that is not allowed."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"REGIONAL_{wrong['loc'][0]}".upper()
        raise BadInput(name, wrong["input"], str(wrong["msg"])) from None
