"""RenderJob: what a person asks for. The same model is the YAML file, the JSON file and the UI form."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ConfigDict, model_validator

from prefect_regional_diffusion.sampling_core.job.comfyui_node import MaskGridNKSamplersAdvanced, RegionalSampler
from prefect_regional_diffusion.sampling_core.job.fields import validation_error
from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Image, MaskShape
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region
from prefect_regional_diffusion.sampling_core.job.validation import check_composition, check_schedule


class DrawnMask(NamedTuple):
    """A mask before it is drawn: the field it comes from, its shape, and what is done to its edge, in pixels."""

    field: str
    shape: MaskShape
    grow: int = 0
    feather: int = 0


class RenderJob(JobFields):
    """One picture: a base prompt over the whole canvas and regions with prompts of their own."""

    model_config = ConfigDict(title="Render job")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RenderJob:
        check_composition(self, self.first_steps)
        first, steps = self.base_only_steps, self.steps
        if self.regions and first is not None and first >= steps:
            raise validation_error("base_only_steps", first, f"0 to {steps - 1} (less than steps)")
        check_schedule("denoise", steps, self.denoise)
        for index in self.batch_index:
            if index >= self.batch_size:
                raise validation_error("batch_index", index, f"0 to {self.batch_size - 1} (less than batch_size)")
        return self

    @property
    def first_steps(self) -> int:
        """Steps of the base alone. Left empty, they are what suits the composition."""
        if self.base_only_steps is not None:
            return self.base_only_steps
        usual = 1 if self.composition == "joint" else 2 if isinstance(self.node, RegionalSampler) else 0
        return min(usual, self.steps - 1)

    @property
    def pictures(self) -> int:
        """Pictures that are drawn at once."""
        return len(self.batch_index) or self.batch_size

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are used, the job's own first."""
        return tuple(dict.fromkeys([self.model, *(region.model or self.model for region in self.regions)]))

    def drawn_masks(self) -> list[DrawnMask]:
        """What masks are made of: one per region, or the grid's tile."""
        if self.composition == "sequential" and isinstance(self.node, MaskGridNKSamplersAdvanced):
            return [DrawnMask("node.tile", self.node.tile)]
        return [
            DrawnMask(f"regions.{i}.mask", region.mask, region.grow, region.feather)
            for i, region in enumerate(self.regions)
        ]

    def image_files(self) -> dict[str, str]:
        """Image files that are read, the start image among them: field -> path."""
        files: dict[str, str] = {}
        if self.start_image is not None:
            files["start_image"] = self.start_image
        protect = [DrawnMask(f"protect.{i}", shape) for i, shape in enumerate(self.protect)]
        for field, shape, *_ in [*self.drawn_masks(), *protect]:
            match shape:
                case Image(image=path):
                    files[f"{field}.image"] = path
                case ColorMap(color_map=path):
                    files[f"{field}.color_map"] = path
                case _:
                    pass
        return files

    def settings_of(self, region: Region | None) -> tuple[str, float, str]:
        """Sampler, cfg and negative prompt of a region (None: of the base), inheritance resolved."""
        if region is None:
            return self.sampler, self.cfg, self.negative_prompt
        return (
            region.sampler or self.sampler,
            self.cfg if region.cfg is None else region.cfg,
            self.negative_prompt if region.negative_prompt is None else region.negative_prompt,
        )
