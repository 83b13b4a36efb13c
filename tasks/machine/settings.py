"""Settings of a machine: environment variables `REGIONAL_*`. They change where and how fast, never what is drawn."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import allowed_by

if TYPE_CHECKING:
    import torch

    from prefect_regional_diffusion.sampling_core.models.family import Facts
    from prefect_regional_diffusion.sampling_core.models.placement import Placement

ANYWHERE = "*"
"""As a root: whatever this process can reach."""


def _listed(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


Places = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
"""Folders and URLs, separated by commas."""

SECRET = ("REGIONAL_S3_KEY", "REGIONAL_S3_SECRET")

Keep = Literal["final", "branch_points", "all"] | Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REGIONAL_", frozen=True)

    store: str = Field(default=".regional/store", description="Where latents are kept: a folder or any fsspec URL")
    out: str = Field(default="renders", description="Folder for finished pictures and records")
    asset_roots: Places = Field(default=(".",), description="Where images and models lie that a job may name")
    model_folders: Places = Field(default=(), description="Where a model is looked for that is not where its name says")
    hub_downloads: bool = Field(default=False, description="Whether a hub's model that is not here is fetched")
    model_stores: Places = Field(
        default=(), description="Buckets from which models are fetched, as s3://bucket/prefix; * is any"
    )
    model_cache: str = Field(
        default="~/.cache/prefect-regional-diffusion/models",
        description="Folder of this machine for models that were fetched",
    )
    allowed_stores: Places = Field(
        default=(), description="Where a run may keep latents, beside `store`; * is anywhere"
    )
    allowed_outputs: Places = Field(default=(), description="Where a run may put pictures, beside `out`; * is anywhere")
    s3_endpoint: str | None = Field(default=None, description="URL of an S3 server other than Amazon's")
    s3_region: str | None = Field(default=None, description="Region of the bucket")
    s3_key: SecretStr | None = Field(default=None, description="Access key; empty: what the environment has for AWS")
    s3_secret: SecretStr | None = Field(default=None, description="Secret of the access key")
    store_block: str | None = Field(
        default=None, description="Prefect block `Regional Store` with what is not set here of it"
    )
    catalog_block: str | None = Field(default=None, description="Prefect block `Model Catalog` with names of models")
    catalog_roots: Places = Field(
        default=(), description="Where roots of the catalog may lie that models are then read from, too; * is anywhere"
    )
    device: str = Field(default="auto", description="`auto` (cuda if there is one, else cpu), or a torch device")
    device_lock: str = Field(
        default="none",
        pattern=r"^[\w.-]{1,80}$",
        description="Whether processes of a machine have models on a device one at a time: `auto` (on a GPU), "
        "a name that they share (on any device), or `none`",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Numbers of the networks; `auto`: float32 on a CPU, else what suits the model"
    )
    weights: Literal["auto", "stored", "computed"] = Field(
        default="auto",
        description="In memory: as narrow as in their file (`stored`), as wide as `dtype` (`computed`), "
        "or narrow if they are fp8",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="What of models is in the host's memory: nothing, what no job is in, all but a layer",
    )
    attention: Literal["auto", "math", "flash", "efficient", "cudnn"] = Field(
        default="auto", description="Kernel of torch's attention; where one cannot, `math` does it"
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        default="off", description="Whether torch compiles denoisers, and in which mode"
    )
    vae_tile: int | None = Field(
        default=None, ge=256, multiple_of=64, description="Edge in pixels of tiles that larger pictures are decoded in"
    )
    keep_text_encoders: bool = Field(default=False, description="Whether they stay in memory once prompts are encoded")
    checkpoint_seconds: float = Field(
        default=1.0,
        gt=0,
        description="How long a chunk of steps should take, if not given; of more than 4 jobs at once, longer",
    )
    keep: Keep = Field(
        default="branch_points",
        description="States that stay when a run is finished: `final`, `branch_points` (also those where other jobs "
        "can go on), a number n (every n-th), or `all`",
    )
    store_retry_seconds: float = Field(
        default=600.0, ge=0, description="Seconds for which a store that fails is tried again"
    )
    max_pending_writes: int = Field(
        default=2, ge=0, description="States that may wait to be written while sampling goes on"
    )
    preview_seconds: float = Field(default=5.0, ge=0, description="How often the UI gets a new preview; 0: never")
    signed_url_hours: float = Field(
        default=0.0,
        ge=0,
        le=168,
        description="How long addresses of pictures in a bucket hold, in events; 0: there are none",
    )
    max_forward_rows: int | None = Field(
        default=None, gt=0, description="Most network rows of one forward; empty: all at once"
    )
    max_job_bytes: int = Field(
        default=500_000, gt=0, description="Largest job, as JSON; Prefect refuses more than 524,288"
    )
    max_canvas_pixels: int = Field(default=4096 * 4096, gt=0, description="Largest canvas, width x height")
    max_steps: int = Field(default=1000, gt=0, description="Most steps")
    max_regions: int = Field(default=64, gt=0, description="Most regions")
    max_pictures: int = Field(default=16, gt=0, description="Most pictures of a batch")
    max_cells: int = Field(default=256, gt=0, description="Most cells of a grid, rows x columns")
    max_jobs: int = Field(default=1000, gt=0, description="Most jobs of a batch")
    max_models: int = Field(default=8, gt=0, description="Most models of a job")
    max_prompt: int = Field(default=10_000, gt=0, description="Longest prompt, in characters")
    max_evaluations: int = Field(default=10**6, gt=0, description="Most network rows of a job, or of all jobs of a run")
    max_drawn_pixels: int = Field(
        default=4 * 10**9,
        gt=0,
        description="Of all different masks of a job, or of all jobs of a run, each of a whole canvas",
    )
    max_tensor_bytes: int = Field(
        default=2**30, gt=0, description="Masks, weights and latents that a process has in memory"
    )
    max_loaded_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Models and LoRAs that a process has in memory, as long as not more are in use; empty: half of the "
        "device's memory",
    )
    max_model_cache_bytes: int = Field(
        default=2**38, gt=0, description="Of `model_cache`: what was used longest ago goes"
    )
    max_mask_bytes: int = Field(default=32 * 2**20, gt=0, description="Largest mask file")
    max_mask_pixels: int = Field(default=64 * 10**6, gt=0, description="Largest mask image")
    max_image_bytes: int = Field(default=2**29, gt=0, description="Memory that one image may take while it is unpacked")
    max_image_pixels: int = Field(default=256 * 10**6, gt=0, description="Of all images of a job together")

    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        # Here, because commands that refuse a job need no torch, and importing it takes longer than all they do.
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def torch_dtype(self, model: Facts) -> torch.dtype:
        """Of the numbers that a model's networks compute with."""
        import torch

        if self.dtype != "auto":
            return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]
        return model.narrow_dtype if self.torch_device().startswith("cuda") else torch.float32

    def placement(self, model: Facts) -> Placement:
        """Where and how a model's networks are run."""
        from prefect_regional_diffusion.sampling_core.models.placement import Placement

        return Placement(
            device=self.torch_device(),
            dtype=self.torch_dtype(model),
            weights=self.weights,
            offload=self.offload,
            compiled=None if self.compile == "off" else self.compile,
            tile=self.vae_tile,
        )

    def most_loaded_bytes(self) -> int:
        """Of models and LoRAs in memory."""
        if self.max_loaded_bytes is not None:
            return self.max_loaded_bytes
        import psutil
        import torch

        device = self.torch_device()
        if device.startswith("cuda") and self.offload == "none":
            return torch.cuda.get_device_properties(device).total_memory // 2
        return psutil.virtual_memory().total // 2

    def check(self) -> None:
        """Raise BadInput for what this machine does not have."""
        from prefect_regional_diffusion.tasks.machine import attention, machine_checks

        device = self.torch_device()
        machine_checks.check_device(device)
        if self.attention != "auto":
            attention.check_attention(self.attention, device)
        if self.offload != "none":
            machine_checks.check_offload(self.offload, device, self.compile)
        if self.compile != "off":
            machine_checks.check_compile(self.compile, device)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once. Raises BadInput for one that is not allowed."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue] - the environment fills the fields
    except ValidationError as error:
        first = error.errors()[0]
        # A setting of several kinds has an error for each.
        kinds = [wrong for wrong in error.errors() if wrong["loc"][0] == first["loc"][0]]
        allowed = [allowed_by(wrong["type"], wrong.get("ctx", {}), wrong["msg"]) for wrong in kinds]
        name = f"REGIONAL_{first['loc'][0]}".upper()
        found = "…" if name in SECRET else first["input"]
        raise BadInput(name, found, " or ".join(dict.fromkeys(allowed))) from None


_NO_SETTINGS = ("UP", "UP_PART", "METRICS_SOCKET", "SCREENSHOTS")
"""Variables `REGIONAL_*` that others read: `make up` and `make down`, runs of a worker with metrics, tests."""


def unknown_variables() -> list[str]:
    """A line for each environment variable that looks like a setting and is none: it changes nothing."""
    known = [field.upper() for field in Settings.model_fields]
    names = sorted(name.removeprefix("REGIONAL_") for name in os.environ if name.startswith("REGIONAL_"))
    meant = {name: get_close_matches(name, known, n=1) for name in names if name not in (*known, *_NO_SETTINGS)}
    return [
        f"REGIONAL_{name} is no setting and changes nothing" + (f"; did you mean REGIONAL_{close[0]}?" if close else "")
        for name, close in meant.items()
    ]
