"""RenderJob: what a person asks for. The same model is the YAML file, the JSON file and the UI form."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sampling_core.shapes import ColorMap, Image, Shape, refuse

SamplerName = Literal["euler", "heun", "dpmpp_2m"]
SchedulerName = Literal["normal", "karras", "exponential", "sgm_uniform", "simple"]
Guidance = Annotated[float, Field(ge=0, le=100)]

MAX_SEED = 2**64 - 1


def _at(position: int) -> dict[str, Any]:
    """Forms list fields by position."""
    return {"position": position}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Region(_Frozen):
    """A part of the canvas with its own prompt. What is left empty is taken from the job."""

    model_config = ConfigDict(title="Region")
    name: str = Field(
        "", max_length=80, title="Name", description="For people; changes no picture", json_schema_extra=_at(1)
    )
    prompt: str = Field(title="Prompt", description="What this region shows", json_schema_extra=_at(2))
    negative_prompt: str | None = Field(
        None, title="Negative prompt", description="Empty: the job's", json_schema_extra=_at(3)
    )
    mask: Shape = Field(title="Mask", description="Where the region is", json_schema_extra=_at(4))
    sampler: SamplerName | None = Field(None, title="Sampler", description="Empty: the job's", json_schema_extra=_at(5))
    cfg: Guidance | None = Field(None, title="Guidance (cfg)", description="Empty: the job's", json_schema_extra=_at(6))
    weight: float = Field(
        1.0, gt=0, le=100, title="Weight", description="Share where regions overlap", json_schema_extra=_at(7)
    )
    feather: int = Field(
        0, ge=0, le=2048, title="Feather", description="Pixels over which the edge fades", json_schema_extra=_at(8)
    )


class RenderJob(_Frozen):
    """One picture: a base prompt over the whole canvas and regions with prompts of their own."""

    model_config = ConfigDict(title="Render job")
    model: str = Field(
        "embedded",
        min_length=1,
        title="Model",
        description="`embedded`, or the folder of a diffusers Stable Diffusion model",
        json_schema_extra=_at(1),
    )
    prompt: str = Field(
        title="Prompt", description="What the canvas shows outside the regions", json_schema_extra=_at(2)
    )
    negative_prompt: str = Field("", title="Negative prompt", json_schema_extra=_at(3))
    width: int = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Width",
        description="Pixels, a multiple of 8",
        json_schema_extra=_at(4),
    )
    height: int = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Height",
        description="Pixels, a multiple of 8",
        json_schema_extra=_at(5),
    )
    seed: int = Field(
        0, ge=0, le=MAX_SEED, title="Seed", description="Same seed, same picture", json_schema_extra=_at(6)
    )
    steps: int = Field(20, ge=1, le=1000, title="Steps", description="Sampling steps", json_schema_extra=_at(7))
    base_only_steps: int = Field(
        2, ge=0, le=999, title="Base-only steps", description="First steps without regions", json_schema_extra=_at(8)
    )
    denoise: float = Field(
        1.0, gt=0, le=1, title="Denoise", description="1 starts from pure noise", json_schema_extra=_at(9)
    )
    sampler: SamplerName = Field("dpmpp_2m", title="Sampler", json_schema_extra=_at(10))
    scheduler: SchedulerName = Field(
        "karras", title="Scheduler", description="How noise levels are spaced", json_schema_extra=_at(11)
    )
    cfg: Guidance = Field(
        5.0, title="Guidance (cfg)", description="How strictly prompts are followed", json_schema_extra=_at(12)
    )
    composition: Literal["joint"] = Field(
        "joint",
        title="Composition",
        description="joint: every region takes every step at once",
        json_schema_extra=_at(13),
    )
    regions: tuple[Region, ...] = Field((), max_length=64, title="Regions", json_schema_extra=_at(14))

    @model_validator(mode="after")
    def _regions_get_steps(self) -> RenderJob:
        if self.regions and self.base_only_steps >= self.steps:
            raise refuse("base_only_steps", self.base_only_steps, f"0 to {self.steps - 1} (less than steps)")
        return self

    def mask_files(self) -> dict[str, str]:
        """Image files that masks are read from: field -> path."""
        files: dict[str, str] = {}
        for i, region in enumerate(self.regions):
            match region.mask:
                case Image(image=path):
                    files[f"regions.{i}.mask.image"] = path
                case ColorMap(color_map=path):
                    files[f"regions.{i}.mask.color_map"] = path
                case _:
                    pass
        return files

    def meaning(self, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What the job draws, with everything inherited filled in and everything without effect left out.

        `digests` gives the SHA-256 of each mask file by its path, so that two files with the same
        bytes mean the same.
        """
        digests = digests or {}
        job = self.model_dump(mode="json", exclude={"regions", "base_only_steps", "sampler", "cfg", "negative_prompt"})
        base_only_steps = self.base_only_steps if self.regions else 0
        regions: list[dict[str, Any]] = []
        for region in self.regions:
            mask = region.mask.model_dump(mode="json")
            for name in ("image", "color_map"):
                if name in mask:
                    mask[name] = digests.get(mask[name], mask[name])
            meaning: dict[str, Any] = {"mask": mask, "prompt": region.prompt, "feather": region.feather}
            meaning["weight"] = region.weight if len(self.regions) > 1 else 1.0
            regions.append(meaning | self._asked_of(region))
        return job | self._asked_of(None) | {"base_only_steps": base_only_steps, "regions": regions}

    def _asked_of(self, region: Region | None) -> dict[str, Any]:
        sampler, cfg, negative = self.settings_of(region)
        # With guidance off, the negative prompt is never evaluated.
        return {"sampler": sampler, "cfg": cfg, "negative_prompt": "" if math.isclose(cfg, 1.0) else negative}

    def settings_of(self, region: Region | None) -> tuple[str, float, str]:
        """Sampler, cfg and negative prompt of a region (None: of the base), inheritance resolved."""
        if region is None:
            return self.sampler, self.cfg, self.negative_prompt
        return (
            region.sampler or self.sampler,
            self.cfg if region.cfg is None else region.cfg,
            self.negative_prompt if region.negative_prompt is None else region.negative_prompt,
        )

    def content_hash(self, digests: Mapping[str, str] | None = None) -> str:
        """SHA-256 of `meaning`, as hex: same meaning, same hash."""
        return content_hash(self.meaning(digests))


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, written in one canonical way."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
