"""The original node that a job with sequential composition is for: one of five, told apart by `name`.

Names and defaults are those of the node's own inputs. What a node shares with others is described once, as a type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from prefect_regional_diffusion.sampling_core.job.fields import AnyOf, FrozenModel, Number, Seed, StrictInt
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MaskShape, Rectangle
from prefect_regional_diffusion.sampling_core.names import (
    ForkMode,
    NodeName,
    RecoveryMode,
    RecoverySampler,
    SecondSeedMode,
)


def _only(name: NodeName) -> Any:
    # Forms draw a field with a single choice, and send it; a constant alone they show as text to be edited.
    return Field(default=name, title="Node", description="Its inputs are below", json_schema_extra={"enum": [name]})


def _step(title: str, description: str) -> Any:
    return Field(ge=0, le=10000, title=title, description=description)


_OverlapFactor = Annotated[StrictInt, _step("Overlap factor", "Pixels by which regions grow")]
_RestoreLatent = Annotated[
    bool, Field(title="Restore latent", description="A region's pass changes nothing outside its mask")
]
_SigmaFactor = Annotated[
    Number, Field(gt=0, le=10, title="Sigma factor of the base", description="Multiplies the base's sigmas")
]
_RecoveryMode = Annotated[
    RecoveryMode, Field(title="Recovery mode", description="Second pass after SDE and UniPC samplers")
]
_RecoverySampler = Annotated[RecoverySampler, Field(title="Recovery sampler", description="Sampler of the second pass")]
_RecoveryRatio = Annotated[
    Number, Field(ge=0, le=1, title="Recovery ratio", description="Share of the sigmas that the second pass takes")
]
_AddNoise = Annotated[bool, Field(title="Add noise")]
_StartAtStep = Annotated[StrictInt, _step("Start at step", "First step of the schedule")]
_EndAtStep = Annotated[StrictInt, _step("End at step", "Step to stop before")]
_LeftoverNoise = Annotated[bool, Field(title="Return with leftover noise")]
_Tiles = Annotated[StrictInt, Field(ge=1, le=16)]


class _Node(FrozenModel):
    def model_post_init(self, context: Any, /) -> None:
        """Mark the name as set: without it in the dump, the node's fields would be read as RegionalSampler's."""
        self.model_fields_set.add("name")


class RegionalSampler(_Node):
    """The base alone for the job's base-only steps, then base and regions in turn, step by step."""

    model_config = ConfigDict(title="RegionalSampler")
    name: Literal["RegionalSampler"] = _only("RegionalSampler")
    overlap_factor: _OverlapFactor = 10
    restore_latent: _RestoreLatent = True
    seed_2nd: Seed = Field(default=0, title="Second seed", description="Of the regional steps")
    seed_2nd_mode: SecondSeedMode = Field(
        default="ignore",
        title="Second seed mode",
        description="ignore: one seed for all steps; increment, decrement and randomize do what fixed does",
    )
    additional_mode: _RecoveryMode = "ratio between"
    additional_sampler: _RecoverySampler = "AUTO"
    additional_sigma_ratio: _RecoveryRatio = 0.3
    vary_noise: bool = Field(
        default=False,
        title="Vary noise",
        description="Regions' variation seeds count, as in later versions of the node",
    )
    sigma_factor: _SigmaFactor = 1.0


class RegionalSamplerAdvanced(_Node):
    """Base and regions in turn over a range of steps, with variation noise in the regions."""

    model_config = ConfigDict(title="RegionalSamplerAdvanced")
    name: Literal["RegionalSamplerAdvanced"] = _only("RegionalSamplerAdvanced")
    overlap_factor: _OverlapFactor = 10
    restore_latent: _RestoreLatent = True
    additional_mode: _RecoveryMode = "ratio between"
    additional_sampler: _RecoverySampler = "AUTO"
    additional_sigma_ratio: _RecoveryRatio = 0.3
    add_noise: _AddNoise = True
    start_at_step: _StartAtStep = 0
    end_at_step: _EndAtStep = 10000
    return_with_leftover_noise: _LeftoverNoise = False
    sigma_factor: _SigmaFactor = 1.0


class TwoSamplersForMask(_Node):
    """A full run of the base's sampler outside the mask, then a full run of the region's inside."""

    model_config = ConfigDict(title="TwoSamplersForMask")
    name: Literal["TwoSamplersForMask"] = _only("TwoSamplersForMask")
    mask_seed: Seed | None = Field(default=None, title="Seed inside the mask", description="Empty: the job's")
    mask_steps: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        default=None, title="Steps inside the mask", description="Empty: the job's"
    )
    mask_denoise: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None, title="Denoise inside the mask", description="Empty: the job's"
    )


class TwoAdvancedSamplersForMask(_Node):
    """For every step the base's sampler outside the mask, then the region's inside the grown mask."""

    model_config = ConfigDict(title="TwoAdvancedSamplersForMask")
    name: Literal["TwoAdvancedSamplersForMask"] = _only("TwoAdvancedSamplersForMask")
    overlap_factor: Annotated[StrictInt, _step("Overlap factor", "Latent cells by which the mask grows")] = 10
    sigma_factor: _SigmaFactor = 1.0


class MaskGridNKSamplersAdvanced(_Node):
    """A tile repeated over rows and columns, and one picture for each cell. The job has no regions."""

    model_config = ConfigDict(title="MaskGridNKSamplersAdvanced")
    name: Literal["MaskGridNKSamplersAdvanced"] = _only("MaskGridNKSamplersAdvanced")
    add_noise: _AddNoise = True
    start_at_step: _StartAtStep = 0
    end_at_step: _EndAtStep = 10000
    return_with_leftover_noise: _LeftoverNoise = False
    rows: _Tiles = Field(default=1, title="Grid rows")
    columns: _Tiles = Field(default=3, title="Grid columns")
    mode: ForkMode = Field(
        default="Sample then Fork",
        title="Fork mode",
        description="Sample all cells at once and cut them out, or each alone",
    )
    tile: MaskShape = Field(
        default=Rectangle(x=0, y=0, width=1, height=1),
        title="Grid tile",
        description="What of each cell is drawn, in fractions of the cell",
    )


def _name_of(value: Any) -> Any:
    if isinstance(value, _Node):
        return getattr(value, "name", None)
    return value.get("name", "RegionalSampler") if isinstance(value, Mapping) else None


Node = Annotated[
    Annotated[RegionalSampler, Tag("RegionalSampler")]
    | Annotated[RegionalSamplerAdvanced, Tag("RegionalSamplerAdvanced")]
    | Annotated[TwoSamplersForMask, Tag("TwoSamplersForMask")]
    | Annotated[TwoAdvancedSamplersForMask, Tag("TwoAdvancedSamplersForMask")]
    | Annotated[MaskGridNKSamplersAdvanced, Tag("MaskGridNKSamplersAdvanced")],
    Discriminator(_name_of),
    AnyOf,
]

NODES = (
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoSamplersForMask,
    TwoAdvancedSamplersForMask,
    MaskGridNKSamplersAdvanced,
)
DEFAULT_NODE = RegionalSampler.model_validate({})
"""The node of a job that does not speak of one."""


def tiles_of(node: Node) -> tuple[int, int]:
    """Rows and columns of the pictures that a node makes of one."""
    return (node.rows, node.columns) if isinstance(node, MaskGridNKSamplersAdvanced) else (1, 1)
