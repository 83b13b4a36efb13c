"""Forms in Prefect's UI: short, in order, and an empty one of the original nodes draws an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from prefect_regional_diffusion.flows.batch import batch
from prefect_regional_diffusion.flows.cli.submit import addressed
from prefect_regional_diffusion.flows.grid import grid
from prefect_regional_diffusion.flows.original_node import original_node
from prefect_regional_diffusion.flows.recurring import recurring
from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.job.comfyui_node import NODES
from prefect_regional_diffusion.sampling_core.job.forms import EXAMPLE
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.job_files import read_job
from tests.processes import ROOT

FLOWS = [batch, grid, original_node, recurring, render]
SEQUENTIAL: dict[str, Any] = {
    "prompt": "base",
    "composition": "sequential",
    "regions": [{"prompt": "region", "mask": {"x": 0, "y": 0, "width": 1, "height": 1}, "scheduler": "beta"}],
    "node": {"name": "TwoAdvancedSamplersForMask", "overlap_factor": 2},
}


def schema_of(flow: Callable[..., Any]) -> dict[str, Any]:
    """What Prefect keeps of a flow when it is deployed: its form, and what it validates parameters with."""
    return parameter_schema(flow).model_dump(mode="json")


def filled(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What Prefect's UI sends of a part of a form in which nothing is filled in: the defaults."""
    return {name: field["default"] for name, field in part["properties"].items() if "default" in field}


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_fields_stand_in_the_order_of_their_declaration(flow: Callable[..., Any]) -> None:
    models = {model.__name__: model for model in (RenderJob, GridJob, *NODES)}
    definitions = schema_of(flow)["definitions"]
    for name, definition in definitions.items():
        positions = [field["position"] for field in definition["properties"].values()]
        assert positions == sorted(set(positions)), name
        if name in models:
            declared = [field for field in models[name].model_fields if field in definition["properties"]]
            assert list(definition["properties"]) == declared
    assert "RenderJob" in definitions


@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow is not original_node], ids=lambda flow: flow.name)
def test_other_forms_have_no_fields_of_the_original_nodes(flow: Callable[..., Any]) -> None:
    definitions = schema_of(flow)["definitions"]
    assert "node" not in definitions["RenderJob"]["properties"]
    assert {"scheduler", "sigma_factor"}.isdisjoint(definitions["Region"]["properties"])
    assert not {node.__name__ for node in NODES} & definitions.keys()


def test_the_form_of_render_is_shorter_by_what_only_nodes_have() -> None:
    def fields(flow: Callable[..., Any]) -> int:
        return sum(len(part["properties"]) for part in schema_of(flow)["definitions"].values())

    of_nodes = sum(len(node.model_fields) for node in NODES)
    assert fields(original_node) - fields(render) > of_nodes / 2


def test_a_job_for_a_node_still_runs_as_render() -> None:
    """Over the API; what is hidden from the form is not refused."""
    validate({"job": SEQUENTIAL}, schema_of(render), raise_on_error=True)
    assert render.validate_parameters({"job": SEQUENTIAL})["job"] == RenderJob.model_validate(SEQUENTIAL)
    with pytest.raises(ParameterTypeError, match="nodes"):
        render.validate_parameters({"job": SEQUENTIAL | {"nodes": {}}})


FLOW_OF = {flow.name: flow for flow in (original_node, render, grid)}
EXAMPLES = [read_job(file) for file in sorted(ROOT.glob("examples/*.yaml"))]
SUBMITTED: list[tuple[str, dict[str, Any]]] = [
    ("render", {"prompt": "base"}),
    ("original-node", SEQUENTIAL),
    # What is left out is the job's, and not what the form has in its place.
    ("original-node", {"prompt": "base", "composition": "sequential", "regions": SEQUENTIAL["regions"]}),
    *(("original-node", job.model_dump(exclude_unset=True)) for job in EXAMPLES if job.composition == "sequential"),
]


@pytest.mark.parametrize(("name", "fields"), SUBMITTED)
def test_a_job_is_submitted_to_the_flow_whose_form_shows_its_fields(name: str, fields: dict[str, Any]) -> None:
    job = RenderJob.model_validate(fields)
    flow, data = addressed(job)
    assert flow == name
    validate({"job": data}, schema_of(FLOW_OF[flow]), raise_on_error=True)
    assert FLOW_OF[flow].validate_parameters({"job": data})["job"] == job


def test_a_grid_is_submitted_to_the_flow_grid() -> None:
    flow, data = addressed(GridJob.model_validate({"job": {"prompt": "base"}, "rows": 1, "columns": 2}))
    assert (flow, data["columns"]) == ("grid", 2)


def test_an_empty_form_of_the_original_nodes_is_an_example() -> None:
    schema = schema_of(original_node)
    assert "required" not in schema["definitions"]["RenderJob"]
    from_fields = {"job": filled(schema, schema["definitions"]["RenderJob"])}
    for parameters in ({}, {"job": {}}, from_fields, filled(schema, schema)):
        validate(parameters, schema, raise_on_error=True)
        assert original_node.validate_parameters(parameters)["job"] == EXAMPLE
    assert EXAMPLE.composition == "sequential"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_tab_of_the_form_draws(node: type[Any]) -> None:
    """The UI sends a tab's own fields with their defaults, its name among them."""
    schema = schema_of(original_node)
    job = filled(schema, schema["definitions"]["RenderJob"])
    job["node"] = filled(schema, schema["definitions"][node.__name__])
    if node.__name__ == "MaskGridNKSamplersAdvanced":
        job |= {"regions": [], "width": 96}
    validate({"job": job}, schema, raise_on_error=True)
    assert isinstance(original_node.validate_parameters({"job": job})["job"].node, node)


def test_a_node_of_a_caller_gets_the_rest_from_the_example() -> None:
    drawn = original_node.validate_parameters({"job": {"node": {"name": "MaskGridNKSamplersAdvanced", "columns": 2}}})
    assert (drawn["job"].prompt, drawn["job"].regions) == (EXAMPLE.prompt, ())
    with pytest.raises(ParameterTypeError, match="the flow render in the place"):
        original_node.validate_parameters({"job": {"prompt": "base", "composition": "joint", "regions": []}})
