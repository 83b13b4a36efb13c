"""RenderJob: mistakes get one clear line each; the same meaning has the same hash; forms get a schema they can show."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.job.comfyui_node import DEFAULT_NODE
from prefect_regional_diffusion.sampling_core.job.fields import MAX_SEED
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MASK_KINDS
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.job.spellings import meant_value
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash

RECTANGLE = {"x": 0, "y": 0, "width": 0.5, "height": 1}
JOB: dict[str, Any] = {"prompt": "a sea", "regions": [{"prompt": "a boat", "mask": RECTANGLE}]}


def changed(path: str, value: Any) -> dict[str, Any]:
    """JOB with one field changed."""
    data = deepcopy(JOB)
    target: Any = data
    *parents, last = path.split(".")
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("promt", "x", "promt: 'x' is not allowed; allowed: prompt (did you mean this?), model,"),
        ("regions.0.weigth", 2, "regions.0.weigth: 2 is not allowed; allowed: weight (did you mean this?)"),
        ("regions.0.mask.hight", 1, "regions.0.mask.hight: 1 is not allowed; allowed: height (did you mean this?)"),
        ("regions.0.mask.width", 1.5, "regions.0.mask.width: 1.5 is not allowed; allowed: at most 1"),
        ("regions.0.mask.x", 0.7, "regions.0.mask.width: 0.5 is not allowed; allowed: at most 0.3 (x + width"),
        ("regions.0.mask.width", 0, "regions.0.mask.width: 0 is not allowed; allowed: more than 0"),
        ("regions.0.mask", {}, "regions.0.mask: {} is not allowed; allowed: rectangle: x, y, width, height; ellipse"),
        ("regions.0.mask", {"kind": "blob"}, "regions.0.mask: {'kind': 'blob'} is not allowed; allowed: rectangle"),
        ("regions.0.mask", {"points": [[0, 0], [1, 1]]}, "regions.0.mask.points: [[0, 0], [1, 1]] is not allowed"),
        ("regions.0.mask", {"points": [[0, 0.5]] * 1001}, "regions.0.mask.points: "),
        ("steps", 0, "steps: 0 is not allowed; allowed: 1 or more"),
        ("seed", MAX_SEED + 1, f"seed: {MAX_SEED + 1} is not allowed; allowed: at most {MAX_SEED}"),
        ("seed", -1, "seed: -1 is not allowed; allowed: 0 or more"),
        ("width", 130, "width: 130 is not allowed; allowed: a multiple of 8"),
        ("sampler", "dpm_9", "sampler: 'dpm_9' is not allowed; allowed: dpm_2 (did you mean this?), euler, "),
        ("base_only_steps", 20, "base_only_steps: 20 is not allowed; allowed: 0 to 19 (less than steps)"),
        ("cfg", float("nan"), "cfg: nan is not allowed; allowed: a finite number"),
        ("steps", "many", "steps: 'many' is not allowed; allowed: a whole number"),
        ("regions", 3, "regions: 3 is not allowed; allowed: a list"),
        ("prompt", None, "prompt: None is not allowed; allowed: text"),
        ("prompt", "\ud800", "prompt: "),
        ("cfg", True, "cfg: True is not allowed; allowed: a number"),
        (
            "sampler",
            "Euler a",
            "sampler: 'Euler a' is not allowed; allowed: euler_ancestral (did you mean this?), euler, ",
        ),
        (
            "sampler",
            "DPM++ 2M Karras",
            "sampler: 'DPM++ 2M Karras' is not allowed; allowed: dpmpp_2m with scheduler: karras (did you mean this?)",
        ),
        (
            "regions.0.sampler",
            "EulerAncestralDiscreteScheduler",
            "regions.0.sampler: 'EulerAncestralDiscreteScheduler' is not allowed; allowed: euler_ancestral (did",
        ),
        ("sampler", "karras", "sampler: 'karras' is not allowed; allowed: scheduler: karras (did you mean this?), "),
        ("scheduler", "karas", "scheduler: 'karas' is not allowed; allowed: karras (did you mean this?), normal, "),
        ("scheduler", "DPM++ SDE", "scheduler: 'DPM++ SDE' is not allowed; allowed: sampler: dpmpp_sde (did you mean"),
        (
            "composition",
            "Joint",
            "composition: 'Joint' is not allowed; allowed: joint (did you mean this?), attention, sequential",
        ),
        ("guidance_scale", 7, "guidance_scale: 7 is not allowed; allowed: cfg (did you mean this?), "),
        ("num_inference_steps", 7, "num_inference_steps: 7 is not allowed; allowed: steps (did you mean this?), "),
        ("negative", "x", "negative: 'x' is not allowed; allowed: negative_prompt (did you mean this?), "),
        ("n_iter", 2, "n_iter: 2 is not allowed; allowed: batch_size (did you mean this?), "),
        ("regions.0.mask_blur", 4, "regions.0.mask_blur: 4 is not allowed; allowed: feather (did you mean this?), "),
        ("regions.0.mask", {"x": 0, "y": 0, "width": 0.5, "hight": 1}, "regions.0.mask.hight: 1 is not allowed; "),
        (
            "regions.0.mask",
            {"points": [[0, 0], [0.5], [1, 1]]},
            "regions.0.mask.points.1: [0.5] is not allowed; allowed: [x, y], two numbers from 0 to 1",
        ),
        ("regions.0.mask", {"points": [0, 0, 0.5, 0.5, 1, 1]}, "regions.0.mask.points.0: 0 is not allowed; allowed: ["),
        ("regions.0.mask", {"points": [[0, 0], [], [1, 1]]}, "regions.0.mask.points.1: [] is not allowed; allowed: ["),
        (
            "regions.0.mask",
            {"points": [[0, 0], [1, 2], [1, 1]]},
            "regions.0.mask.points.1.1: 2 is not allowed; allowed",
        ),
        ("node", {"name": "RegionalSampler"}, "node: {'name': 'RegionalSampler'} is not allowed; allowed: left out, "),
        ("node", {}, "node: {} is not allowed; allowed: left out, unless there is composition: sequential"),
        ("denoise", 1e-300, "denoise: 1e-300 is not allowed; allowed: 0.02 or more with 20 steps"),
    ],
)
def test_mistakes_get_one_line(path: str, value: Any, line: str) -> None:
    with pytest.raises(BadJob) as caught:
        parse_job(changed(path, value))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(line)
    assert len(caught.value.mistakes) == 1


def test_a_misspelt_field_that_is_required_is_one_mistake() -> None:
    with pytest.raises(BadJob) as caught:
        parse_job({"promt": "a sea", "regions": [{"prompt": "a boat", "maks": RECTANGLE}]})
    assert [str(mistake).partition(" (did")[0] for mistake in caught.value.mistakes] == [
        "regions.0.maks: {'height': 1, 'width': 0.5, 'x': 0, 'y': 0} is not allowed; allowed: mask",
        "promt: 'a sea' is not allowed; allowed: prompt",
    ]


def test_every_sampler_and_scheduler_is_known_by_what_other_programs_call_it() -> None:
    """In A1111: signs, capitals and blanks in any way; a scheduler behind the sampler."""
    for sampler in get_args(SamplerName):
        assert meant_value("sampler", sampler.upper().replace("_", " "), get_args(SamplerName)) == sampler
        for scheduler in ("karras", "exponential", "sgm_uniform"):
            written = f"{sampler} {scheduler}".replace("pp", "++").replace("_", " ").title()
            assert meant_value("sampler", written, get_args(SamplerName)) == f"{sampler} with scheduler: {scheduler}"


def test_a_node_that_nobody_has_touched_may_be_there() -> None:
    """Prefect's form sends the defaults of its schema, and the job in a picture has all fields."""
    form = RenderJob.model_json_schema()["properties"]["node"]["default"]
    assert form["name"] == "RegionalSampler"
    assert RenderJob.model_validate(JOB | {"node": form}) == parse_job(JOB)
    assert parse_job(JOB | {"node": form}) == parse_job(JOB)
    touched = form | {"overlap_factor": 11}
    with pytest.raises(BadJob, match=r"^node: "):
        parse_job(JOB | {"node": touched})
    with pytest.raises(BadJob, match=r"^job\.node: "):
        parse_grid({"job": JOB | {"node": touched}})
    assert parse_job(JOB | {"node": form, "composition": "sequential"}).node == DEFAULT_NODE


def test_a_number_too_long_to_print() -> None:
    with pytest.raises(BadJob, match=r"^steps: a very long number is not allowed"):
        parse_job(changed("steps", 10**5000))


def test_missing_fields_and_several_mistakes() -> None:
    with pytest.raises(BadJob) as caught:
        parse_job({"steps": 0, "regions": [{"mask": RECTANGLE}]})
    assert [mistake.field for mistake in caught.value.mistakes] == ["prompt", "steps", "regions.0.prompt"]


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_no_mapping(data: object) -> None:
    with pytest.raises(BadJob, match=r"^job: .* a mapping with the fields model, prompt"):
        parse_job(data)


@given(shuffled=st.permutations(list(changed("seed", 7).items())))
def test_hash_ignores_the_order_of_fields(shuffled: list[tuple[str, Any]]) -> None:
    assert job_hash(resolve(parse_job(dict(shuffled)))) == job_hash(resolve(parse_job(changed("seed", 7))))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", 20),
        ("cfg", 1.5),
        ("regions.0.mask", {"x": -0.0, "y": 0, "width": 0.5, "height": 1}),
        ("regions.0.name", "boat"),
        ("regions.0.weight", 3.0),
        ("regions.0.weight", 0.0),
        ("regions.0.cfg", 1.5),
        ("regions.0.sampler", "dpmpp_2m"),
        ("regions.0.negative_prompt", ""),
        ("regions.0.mask", RECTANGLE | {"kind": "rectangle"}),
        ("regions.0.mask", {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}),
    ],
)
def test_same_meaning_same_hash(path: str, value: Any) -> None:
    """Defaults spelled out, names, inherited values and ways to write a number do not change a picture."""
    assert job_hash(resolve(parse_job(changed(path, value)))) == job_hash(resolve(parse_job(JOB)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prompt", "a lake"),
        ("seed", 1),
        ("steps", 21),
        ("cfg", 4.0),
        ("sampler", "euler"),
        ("base_only_steps", 3),
        ("model", "elsewhere"),
        ("regions.0.prompt", "a ship"),
        ("regions.0.feather", 8),
        ("regions.0.grow", 8),
        ("regions.0.negative_prompt", "fog"),
        ("regions.0.mask.width", 0.4),
        ("regions", []),
    ],
)
def test_other_meaning_other_hash(path: str, value: Any) -> None:
    assert job_hash(resolve(parse_job(changed(path, value)))) != job_hash(resolve(parse_job(JOB)))


def test_negative_prompt_means_nothing_without_guidance() -> None:
    plain, negative = changed("cfg", 1.0), changed("cfg", 1.0) | {"negative_prompt": "fog"}
    assert job_hash(resolve(parse_job(plain))) == job_hash(resolve(parse_job(negative)))


def test_mask_files_are_hashed_by_content() -> None:
    one, two = (parse_job(changed("regions.0.mask", {"image": name})) for name in ("a.png", "b.png"))
    assert job_hash(resolve(one)) != job_hash(resolve(two))
    assert job_hash(resolve(one), {"a.png": "same"}) == job_hash(resolve(two), {"b.png": "same"})


def test_models_are_hashed_by_content() -> None:
    one, two = (parse_job(changed("model", name)) for name in ("/a/sd", "/b/sd"))
    assert job_hash(resolve(one), {"/a/sd": "same"}) == job_hash(resolve(two), {"/b/sd": "same"})


def test_a_single_step_has_room_for_regions() -> None:
    assert resolve(parse_job(changed("steps", 1))).base_only_steps == 0


def test_round_trip_through_json() -> None:
    job = parse_job(JOB)
    assert RenderJob.model_validate_json(job.model_dump_json()) == job


def test_no_two_kinds_of_masks_need_a_field_of_one_name() -> None:
    needed = [name for kind in MASK_KINDS.values() for name, field in kind.model_fields.items() if field.is_required()]
    assert len(needed) == len(set(needed))


def test_schema_suits_forms() -> None:
    """Members of the mask union are `anyOf`, open, with the kind hidden; every field has a title and a position."""
    schema = RenderJob.model_json_schema()
    region = schema["$defs"]["Region"]
    assert len(region["properties"]["mask"]["anyOf"]) == len(MASK_KINDS)
    assert "oneOf" not in json.dumps(schema)
    for kind in MASK_KINDS.values():
        shape = schema["$defs"][kind.__name__]
        assert "additionalProperties" not in shape
        assert "kind" not in shape["properties"]
    for model in (schema, *schema["$defs"].values()):
        positions = [field["position"] for field in model["properties"].values()]
        assert positions == sorted(set(positions))
        # A reference is shown with the title of what it refers to.
        assert all("title" in field or "$ref" in field for field in model["properties"].values())
