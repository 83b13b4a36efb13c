"""RenderJob as forms show it: the same model, without the fields that its compositions do not use.

Hidden fields may still be written by callers and job files, so the schema with hidden fields is open; the model itself
still refuses unknown fields. So a job of any composition can be sent to either deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from prefect_regional_diffusion.sampling_core.job.fields import validation_error
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.shared_fields import OF_THE_MODEL
from prefect_regional_diffusion.sampling_core.job.validation import (
    JOINT_ONLY,
    JOINT_ONLY_OF_REGIONS,
    SEQUENTIAL_ONLY,
    SEQUENTIAL_ONLY_OF_REGIONS,
)

_EXAMPLE: dict[str, Any] = {
    "composition": "sequential",
    "prompt": "a yellow background",
    "sampler": "euler",
    "scheduler": "normal",
    "regions": [
        {
            "name": "left half",
            "prompt": "a green plain circle on a black background",
            "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1},
        }
    ],
    "node": {"name": "RegionalSampler"},
}
EXAMPLE = RenderJob.model_validate(_EXAMPLE)
"""Defaults of the form for original nodes. They suit all nodes but the grid, which has no regions."""


class _Form(NamedTuple):
    """Annotates RenderJob: what is hidden of it and of its regions, and the job that its defaults are those of."""

    hidden: tuple[str, ...]
    hidden_of_regions: tuple[str, ...]
    defaults: RenderJob | None = None

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        job = handler.resolve_ref_schema(json_schema)
        region = handler.resolve_ref_schema(job["properties"]["regions"]["items"])
        for part, hidden in ((job, self.hidden), (region, self.hidden_of_regions)):
            part.pop("additionalProperties", None)
            for name in hidden:
                part["properties"].pop(name, None)
        if self.defaults is not None:
            job.pop("required", None)
            defaults = self.defaults.model_dump(mode="json")
            for name, field in job["properties"].items():
                if name not in OF_THE_MODEL or name in self.defaults.model_fields_set:
                    field["default"] = defaults[name]
        return json_schema


def _with_example(data: Any) -> Any:
    """A job for an original node, with EXAMPLE's fields where it has none; the grid's node has no regions."""
    if not isinstance(data, Mapping):
        return data
    node = data.get("node")
    grid = isinstance(node, Mapping) and node.get("name") == "MaskGridNKSamplersAdvanced"
    return {name: value for name, value in _EXAMPLE.items() if not (grid and name == "regions")} | dict(data)


def data_for_node_form(job: RenderJob) -> dict[str, Any]:
    """A job as JSON that is read as a NodeJob: it has its own values in the fields that EXAMPLE would fill in."""
    example_fields = {name: value for name, value in job.model_dump(mode="json").items() if name in _EXAMPLE}
    return example_fields | job.model_dump(mode="json", exclude_unset=True)


def _sequential(job: RenderJob) -> RenderJob:
    if job.composition != "sequential":
        raise validation_error(
            "composition", job.composition, "sequential, or the flow render in the place of original-node"
        )
    return job


JointJob = Annotated[RenderJob, _Form(SEQUENTIAL_ONLY, SEQUENTIAL_ONLY_OF_REGIONS)]
"""A job as forms for joint and attention composition show it."""

NodeJob = Annotated[
    RenderJob,
    BeforeValidator(_with_example),
    AfterValidator(_sequential),
    _Form(("composition", *JOINT_ONLY), JOINT_ONLY_OF_REGIONS, EXAMPLE),
]
"""A job as the form for the original nodes shows it; what is left out is EXAMPLE's."""
