"""The original node that a job with sequential composition is for, with the node's own parameters."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from prefect_regional_diffusion.sampling_core.job.fields import Frozen, Number, Seed, Whole, at
from prefect_regional_diffusion.sampling_core.job.mask_shapes import Rectangle, Shape
from prefect_regional_diffusion.sampling_core.names import (
    ForkMode,
    NodeName,
    RecoveryMode,
    RecoverySampler,
    SecondSeedMode,
)

Step = Annotated[Whole, Field(ge=0, le=10000)]


class Node(Frozen):
    """Names and defaults are those of the node's own inputs. What a node does not have must stay as it is."""

    model_config = ConfigDict(title="Original node")
    name: NodeName = Field(
        "RegionalSampler",
        title="Node",
        description="Which node's picture to draw; the fields below say whose they are",
        json_schema_extra=at(1),
    )
    overlap_factor: Step = Field(
        10,
        title="Overlap factor",
        description="Pixels by which regions grow (TwoAdvancedSamplersForMask: latent cells). "
        "RegionalSampler, RegionalSamplerAdvanced, TwoAdvancedSamplersForMask",
        json_schema_extra=at(2),
    )
    restore_latent: bool = Field(
        True,
        title="Restore latent",
        description="A region's pass changes nothing outside its mask. RegionalSampler, RegionalSamplerAdvanced",
        json_schema_extra=at(3),
    )
    seed_2nd: Seed = Field(
        0, title="Second seed", description="Of the regional steps. RegionalSampler", json_schema_extra=at(4)
    )
    seed_2nd_mode: SecondSeedMode = Field(
        "ignore",
        title="Second seed mode",
        description="ignore: one seed for all steps; increment, decrement and randomize do what fixed does. "
        "RegionalSampler",
        json_schema_extra=at(5),
    )
    additional_mode: RecoveryMode = Field(
        "ratio between",
        title="Recovery mode",
        description="Second pass after SDE and UniPC samplers. RegionalSampler, RegionalSamplerAdvanced",
        json_schema_extra=at(6),
    )
    additional_sampler: RecoverySampler = Field(
        "AUTO",
        title="Recovery sampler",
        description="Sampler of the second pass. RegionalSampler, RegionalSamplerAdvanced",
        json_schema_extra=at(7),
    )
    additional_sigma_ratio: Number = Field(
        0.3,
        ge=0,
        le=1,
        title="Recovery ratio",
        description="Share of the sigmas that the second pass takes. RegionalSampler, RegionalSamplerAdvanced",
        json_schema_extra=at(8),
    )
    vary_noise: bool = Field(
        False,
        title="Vary noise",
        description="Regions' variation seeds count, as in later versions of the node. RegionalSampler",
        json_schema_extra=at(9),
    )
    add_noise: bool = Field(
        True,
        title="Add noise",
        description="RegionalSamplerAdvanced, MaskGridNKSamplersAdvanced",
        json_schema_extra=at(10),
    )
    start_at_step: Step = Field(
        0,
        title="Start at step",
        description="First step of the schedule. RegionalSamplerAdvanced, MaskGridNKSamplersAdvanced",
        json_schema_extra=at(11),
    )
    end_at_step: Step = Field(
        10000,
        title="End at step",
        description="Step to stop before. RegionalSamplerAdvanced, MaskGridNKSamplersAdvanced",
        json_schema_extra=at(12),
    )
    return_with_leftover_noise: bool = Field(
        False,
        title="Return with leftover noise",
        description="RegionalSamplerAdvanced, MaskGridNKSamplersAdvanced",
        json_schema_extra=at(13),
    )
    mask_seed: Seed | None = Field(
        None,
        title="Seed inside the mask",
        description="Empty: the job's. TwoSamplersForMask",
        json_schema_extra=at(14),
    )
    mask_steps: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        None,
        title="Steps inside the mask",
        description="Empty: the job's. TwoSamplersForMask",
        json_schema_extra=at(15),
    )
    mask_denoise: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None,
        title="Denoise inside the mask",
        description="Empty: the job's. TwoSamplersForMask",
        json_schema_extra=at(16),
    )
    rows: Whole = Field(
        1, ge=1, le=16, title="Grid rows", description="MaskGridNKSamplersAdvanced", json_schema_extra=at(17)
    )
    columns: Whole = Field(
        3, ge=1, le=16, title="Grid columns", description="MaskGridNKSamplersAdvanced", json_schema_extra=at(18)
    )
    mode: ForkMode = Field(
        "Sample then Fork",
        title="Fork mode",
        description="Sample all cells at once and cut them out, or each alone. MaskGridNKSamplersAdvanced",
        json_schema_extra=at(19),
    )
    tile: Shape = Field(
        Rectangle(x=0, y=0, width=1, height=1),
        title="Grid tile",
        description="What of each cell is drawn, in fractions of the cell. MaskGridNKSamplersAdvanced",
        json_schema_extra=at(20),
    )
    sigma_factor: Number = Field(
        1.0,
        gt=0,
        le=10,
        title="Sigma factor of the base",
        description="Multiplies the base's sigmas. "
        "RegionalSampler, RegionalSamplerAdvanced, TwoAdvancedSamplersForMask",
        json_schema_extra=at(21),
    )


_RECOVERY = ("additional_mode", "additional_sampler", "additional_sigma_ratio")
_RANGE = ("add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise")

PARAMETERS: dict[NodeName, tuple[str, ...]] = {
    "RegionalSampler": (
        *("overlap_factor", "restore_latent", "seed_2nd", "seed_2nd_mode", "vary_noise", "sigma_factor"),
        *_RECOVERY,
    ),
    "RegionalSamplerAdvanced": ("overlap_factor", "restore_latent", "sigma_factor", *_RECOVERY, *_RANGE),
    "TwoSamplersForMask": ("mask_seed", "mask_steps", "mask_denoise"),
    "TwoAdvancedSamplersForMask": ("overlap_factor", "sigma_factor"),
    "MaskGridNKSamplersAdvanced": ("rows", "columns", "mode", "tile", *_RANGE),
}
"""The parameters that each node has."""

UNTOUCHED = Node.model_validate({})
"""A node as a job has it that does not speak of one."""
