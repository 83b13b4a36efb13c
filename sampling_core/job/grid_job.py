"""GridJob: one job in up to 16 x 16 variants, and the jobs of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from prefect_regional_diffusion.sampling_core.job.fields import (
    MAX_SEED,
    FrozenModel,
    Seed,
    StrictInt,
    Text,
    validation_error,
)
from prefect_regional_diffusion.sampling_core.job.forms import JointJob
from prefect_regional_diffusion.sampling_core.job.mask_shapes import Rectangle
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.shared_fields import MOST_REGIONS, Region
from prefect_regional_diffusion.sampling_core.job.validation import check_prompt
from prefect_regional_diffusion.sampling_core.names import ForkMode

_WHOLE_CANVAS = Rectangle(x=0, y=0, width=1, height=1)

Index = Annotated[StrictInt, Field(ge=0, le=15)]
Extent = Annotated[StrictInt, Field(ge=1, le=16)]


class Cell(FrozenModel):
    """What one cell draws in another way than the job. What is left empty is taken from the job."""

    model_config = ConfigDict(title="Cell")
    row: Index = Field(title="Row", description="From the top, the first is 0")
    column: Index = Field(title="Column", description="From the left, the first is 0")
    prompt: Text | None = Field(default=None, title="Prompt", description="Empty: the job's")
    negative_prompt: Text | None = Field(default=None, title="Negative prompt", description="Empty: the job's")
    seed: Seed | None = Field(
        default=None, title="Seed", description="Empty: the job's, plus the cell's number. Fork then Sample only"
    )


class GridJob(FrozenModel):
    """Rows and columns of pictures of one job, each a whole canvas."""

    model_config = ConfigDict(title="Grid job")
    job: JointJob = Field(title="Job", description="What all cells have in common")
    rows: Extent = Field(default=2, title="Rows", description="1 to 16")
    columns: Extent = Field(default=2, title="Columns", description="1 to 16")
    mode: ForkMode = Field(
        default="Fork then Sample",
        title="Fork mode",
        description="Fork then Sample: each cell from a seed of its own. "
        "Sample then Fork: the first steps are one run, then each cell goes on with its own prompt",
    )
    fork_at_step: Annotated[StrictInt, Field(ge=1, le=999)] | None = Field(
        default=None,
        title="Fork at step",
        description="Steps that all cells share. Empty: half of them. Sample then Fork only",
    )
    cells: tuple[Cell, ...] = Field(
        default=(), max_length=256, title="Cells", description="The cells that differ in more than the seed"
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> GridJob:
        if self.job.pictures != 1:
            raise validation_error("job.batch_size", self.job.batch_size, "1: each cell is one picture")
        if self.mode == "Sample then Fork":
            self._check_fork()
        elif self.fork_at_step is not None:
            raise validation_error("fork_at_step", self.fork_at_step, "left out with Fork then Sample")
        positions: set[tuple[int, int]] = set()
        for i, cell in enumerate(self.cells):
            for name, index, size in (("row", cell.row, self.rows), ("column", cell.column, self.columns)):
                if index >= size:
                    raise validation_error(f"cells.{i}.{name}", index, f"0 to {size - 1} (less than {name}s)")
            if (cell.row, cell.column) in positions:
                raise validation_error(f"cells.{i}", [cell.row, cell.column], "one entry for each cell")
            positions.add((cell.row, cell.column))
            for name, prompt in (("prompt", cell.prompt), ("negative_prompt", cell.negative_prompt)):
                check_prompt(f"cells.{i}.{name}", prompt or "", self.job.prompt_syntax)
        return self

    def _check_fork(self) -> None:
        if self.job.composition == "sequential":
            raise validation_error("job.composition", "sequential", "joint or attention with Sample then Fork")
        if self.job.steps < 2:
            raise validation_error("job.steps", self.job.steps, "2 or more with Sample then Fork")
        if len(self.job.regions) >= MOST_REGIONS:
            raise validation_error(
                "job.regions", f"{MOST_REGIONS} regions", f"at most {MOST_REGIONS - 1} with Sample then Fork"
            )
        if self.fork_at_step is not None and self.fork_at_step >= self.job.steps:
            raise validation_error("fork_at_step", self.fork_at_step, f"1 to {self.job.steps - 1} (less than steps)")
        for i, cell in enumerate(self.cells):
            if cell.seed is not None:
                allowed = "left out with Sample then Fork: cells that share steps share their noise"
                raise validation_error(f"cells.{i}.seed", cell.seed, allowed)

    @property
    def fork_step(self) -> int:
        """Steps that all cells share."""
        if self.mode == "Fork then Sample":
            return 0
        return self.job.steps // 2 if self.fork_at_step is None else self.fork_at_step


class NamedJob(FrozenModel):
    """A job and what its picture is called."""

    name: Text = Field(min_length=1, max_length=80)
    job: JointJob


def cells(grid: GridJob) -> list[NamedJob]:
    """The job of each cell, row by row, named `r<row>c<column>` (from 0)."""
    cells_by_position = {(cell.row, cell.column): cell for cell in grid.cells}
    return [
        NamedJob(
            name=f"r{row}c{column}", job=_job(grid, row * grid.columns + column, cells_by_position.get((row, column)))
        )
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]


def _job(grid: GridJob, number: int, cell: Cell | None) -> RenderJob:
    changes: dict[str, Any] = {} if cell is None else cell.model_dump(exclude={"row", "column"}, exclude_none=True)
    if grid.mode == "Fork then Sample":
        return _with_fields(grid.job, {"seed": (grid.job.seed + number) % (MAX_SEED + 1)} | changes)
    changes = {name: value for name, value in changes.items() if value != getattr(grid.job, name)}
    if not changes:
        return grid.job
    # From the fork on, a region under all others takes the place of the base. It comes last, because the place
    # of a region is part of what names its run's latents, and this cell shares those of the other cells.
    window = {"name": "fork", "mask": _WHOLE_CANVAS, "weight": 0, "start_at_step": grid.fork_step}
    fork = Region.model_validate({"prompt": grid.job.prompt} | changes | window)
    return _with_fields(grid.job, {"regions": (*grid.job.regions, fork)})


def _with_fields(job: RenderJob, fields: dict[str, Any]) -> RenderJob:
    """The job with other values in some fields, checked like any job."""
    return RenderJob.model_validate(job.model_dump(exclude_unset=True) | fields)


def distinct(jobs: Sequence[NamedJob]) -> dict[str, NamedJob]:
    """For each name, the first of the jobs that draw the same picture: equal ones are drawn once."""
    first: dict[RenderJob, NamedJob] = {}
    return {named_job.name: first.setdefault(named_job.job, named_job) for named_job in jobs}
