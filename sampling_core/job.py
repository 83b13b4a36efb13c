"""RenderJob: what a person asks for. The same model is the YAML file, the JSON file and the UI form."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sampling_core.shapes import ColorMap, Image, Shape, refuse

SamplerName = Literal["euler", "heun", "dpmpp_2m"]
SchedulerName = Literal[
    "normal",
    "karras",
    "exponential",
    "sgm_uniform",
    "simple",
    "ddim_uniform",
    "beta",
    "linear_quadratic",
    "kl_optimal",
    "AYS SD1",
    "AYS SDXL",
    "AYS SVD",
    "GITS",
]


def _no_flag(value: Any) -> Any:
    """YAML reads `cfg: yes` as true, and true counts as 1: surely not what was meant."""
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

LONGEST_SCHEDULE = 1000
"""Levels that models are trained on; a longer schedule would name some of them twice."""

MAX_SEED = 2**64 - 1


def _at(position: int) -> dict[str, Any]:
    """Forms list fields by position."""
    return {"position": position}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Region(_Frozen):
    """A part of the canvas with its own prompt. What is left empty is taken from the job."""

    model_config = ConfigDict(title="Region")
    name: Text = Field(
        "", max_length=80, title="Name", description="For people; changes no picture", json_schema_extra=_at(1)
    )
    prompt: Text = Field(title="Prompt", description="What this region shows", json_schema_extra=_at(2))
    negative_prompt: Text | None = Field(
        None, title="Negative prompt", description="Empty: the job's", json_schema_extra=_at(3)
    )
    mask: Shape = Field(title="Mask", description="Where the region is", json_schema_extra=_at(4))
    sampler: SamplerName | None = Field(None, title="Sampler", description="Empty: the job's", json_schema_extra=_at(5))
    cfg: Guidance | None = Field(None, title="Guidance (cfg)", description="Empty: the job's", json_schema_extra=_at(6))
    weight: Number = Field(
        1.0, gt=0, le=100, title="Weight", description="Share where regions overlap", json_schema_extra=_at(7)
    )
    feather: Whole = Field(
        0, ge=0, le=512, title="Feather", description="Pixels over which the edge fades", json_schema_extra=_at(8)
    )


class RenderJob(_Frozen):
    """One picture: a base prompt over the whole canvas and regions with prompts of their own."""

    model_config = ConfigDict(title="Render job")
    model: Text = Field(
        "embedded",
        min_length=1,
        title="Model",
        description="`embedded`, or the folder of a diffusers Stable Diffusion model",
        json_schema_extra=_at(1),
    )
    prompt: Text = Field(
        title="Prompt", description="What the canvas shows outside the regions", json_schema_extra=_at(2)
    )
    negative_prompt: Text = Field("", title="Negative prompt", json_schema_extra=_at(3))
    width: Whole = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Width",
        description="Pixels, a multiple of 8",
        json_schema_extra=_at(4),
    )
    height: Whole = Field(
        128,
        ge=64,
        le=4096,
        multiple_of=8,
        title="Height",
        description="Pixels, a multiple of 8",
        json_schema_extra=_at(5),
    )
    seed: Whole = Field(
        0,
        ge=0,
        le=MAX_SEED,
        title="Seed",
        description="Same seed, same picture. Forms in a browser are exact up to 2**53",
        json_schema_extra=_at(6),
    )
    steps: Whole = Field(20, ge=1, le=1000, title="Steps", description="Sampling steps", json_schema_extra=_at(7))
    base_only_steps: Whole = Field(
        1, ge=0, le=999, title="Base-only steps", description="First steps without regions", json_schema_extra=_at(8)
    )
    denoise: Number = Field(
        1.0, gt=0, le=1, title="Denoise", description="1 starts from pure noise", json_schema_extra=_at(9)
    )
    sampler: SamplerName = Field("dpmpp_2m", title="Sampler", json_schema_extra=_at(10))
    scheduler: SchedulerName = Field(
        "karras", title="Scheduler", description="How noise levels are spaced", json_schema_extra=_at(11)
    )
    cfg: Guidance = Field(
        1.5, title="Guidance (cfg)", description="How strictly prompts are followed", json_schema_extra=_at(12)
    )
    composition: Literal["joint"] = Field(
        "joint",
        title="Composition",
        description="joint: every region takes every step at once",
        json_schema_extra={"position": 13, "enum": ["joint"]},
    )
    regions: tuple[Region, ...] = Field((), max_length=64, title="Regions", json_schema_extra=_at(14))

    @model_validator(mode="before")
    @classmethod
    def _one_step_leaves_none_to_the_base(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("steps") == 1:
            return {"base_only_steps": 0, **data}
        return data

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RenderJob:
        if self.regions and self.base_only_steps >= self.steps:
            raise refuse("base_only_steps", self.base_only_steps, f"0 to {self.steps - 1} (less than steps)")
        if self.steps > self.denoise * LONGEST_SCHEDULE:
            least = self.steps / LONGEST_SCHEDULE
            raise refuse(
                "denoise", self.denoise, f"{least:g} or more with {self.steps} steps (a schedule of at most 1000)"
            )
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

        `digests` gives the SHA-256 of each mask file and of the model's weights by the path that the job
        names, so that the same bytes mean the same wherever they lie.
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
        job["model"] = digests.get(self.model, self.model)
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
    text = json.dumps(_without_negative_zero(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_negative_zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_negative_zero(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_negative_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value
