"""The methods that are compared, and one layout drawn by one of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.adherence import draw_timed
from benchmarks.layouts.scenes import Layout
from benchmarks.layouts.scores import Change, Scores, change, scores
from benchmarks.reading import Bytes
from benchmarks.whole_model import WholeModel
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob


class Method(NamedTuple):
    """What a job has beside its layout. With `prompts_only`, regions can have no sampler or guidance of their own."""

    name: str
    fields: dict[str, Any]
    prompts_only: bool = False

    def job(self, layout: Layout, steps: int, *, second: bool = False) -> RenderJob:
        """A layout's job. Raises BadInput where this version knows no such method."""
        return parse_job(layout.job(steps, prompts_only=self.prompts_only, second=second) | self.fields)


_ORDER = {"overlap": "order"}
"""Sequential composition has no other rule."""

METHODS = (
    Method("sequential", {"composition": "sequential"}),
    Method("whole", _ORDER),
    Method("windows", _ORDER | {"window": {"margin": 0}}),
    Method("margin", _ORDER | {"window": {"margin": 32}}),
    Method("full-steps", _ORDER | {"window": {"full_steps": 3}}),
    Method("attention", _ORDER | {"composition": "attention"}, prompts_only=True),
    Method("mixed", _ORDER | {"arrangement": "auto"}),
)
"""Joint composition is `whole` (rows of the whole canvas) and windows: bare, with 32 pixels around, after 3 steps.
`mixed` lets regions with one sampler and guidance share a row."""


class Measured(NamedTuple):
    """One layout, drawn by one method."""

    picture: Bytes
    scores: Scores
    change: Change
    evaluations: float
    """Of the canvas, a step."""
    seconds: float


def refusal(method: Method, layout: Layout, steps: int) -> str | None:
    """Why this version cannot draw a layout by a method, in one line; None if it can."""
    try:
        method.job(layout, steps)
    except BadInput as error:
        return str(error).splitlines()[0]
    return None


def measure(model: WholeModel, method: Method, layout: Layout, steps: int) -> Measured:
    """Draw a layout, and again with the changed prompt."""
    drawing = draw_timed(method.job(layout, steps), model)
    other = draw_timed(method.job(layout, steps, second=True), model).picture
    return Measured(
        drawing.picture,
        scores(drawing.picture, layout),
        change(drawing.picture, other, layout),
        float(drawing.cost.canvases) / steps,
        drawing.seconds,
    )
