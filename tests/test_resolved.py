"""A resolved job: nothing is left to look up, all of it is hashed, and the hashes are those that they were."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prefect_regional_diffusion.sampling_core.job.mask_shapes import Image, Rectangle
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import (
    ParticipantSettings,
    ResolvedJob,
    ResolvedRegion,
    resolve,
)
from prefect_regional_diffusion.sampling_core.job.resolved_controls import ControlPicture, ResolvedControl
from prefect_regional_diffusion.sampling_core.job.resolved_image_prompts import ResolvedImagePrompt
from prefect_regional_diffusion.sampling_core.job.resolved_loras import ResolvedLora
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.job.resolved_refiner import ResolvedRefiner
from prefect_regional_diffusion.sampling_core.job.resolved_sizes import ResolvedSizes
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow
from prefect_regional_diffusion.sampling_core.planning.canonical_job import INERT, canonical_job, job_hash

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "recorded_hashes.json").read_text())
"""All examples, the cells of the example grids, and jobs with each field changed, with their hashes as they were when
jobs were first resolved as a whole; `hash_with_digests` is that with `content of <path>` for each file."""

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}


@pytest.mark.parametrize("recorded", RECORDED, ids=range(len(RECORDED)))
def test_hashes_stay_as_they_are(recorded: dict[str, Any]) -> None:
    """Of a store with a hundred thousand pictures, all would be drawn again."""
    job = resolve(parse_job(recorded["job"]))
    digests = {name: f"content of {name}" for name in (*job.image_files.values(), *job.models)}
    assert job_hash(job) == recorded["hash"]
    assert job_hash(job, digests) == recorded["hash_with_digests"]


JOINT = resolve(
    parse_job(
        {
            **{"prompt": "base", "batch_size": 3, "batch_index": [0, 2], "overlap": "weight", "noise": "comfyui"},
            **{"init_image": "start.png", "denoise": 0.5, "protect": [LEFT], "sampler": "euler_ancestral"},
            "regions": [
                {
                    **{"prompt": "one", "mask": {"image": "mask.png"}, "variation_strength": 0.5, "end_at_step": 9},
                    "window": {"margin": 8},
                },
                {"prompt": "two", "mask": LEFT, "weight": 2.0, "negative_prompt": "own"},
            ],
        }
    )
)
SEQUENTIAL = resolve(
    parse_job({"prompt": "base", "composition": "sequential", "regions": [{"prompt": "one", "mask": LEFT}]})
)
OTHER: dict[str, Any] = {
    **{
        "overlap": "order",
        "noise": "per_step",
        "init_fit": "stretch",
        "init_image": "other.png",
    },
    **{"sampler": "heun", "scheduler": "simple", "variation_method": "slerp", "batch_index": (1,), "batch_size": 7},
    **{"regions": (), "protect": (), "end_at_step": 5, "shape": Rectangle(x=0.1, y=0, width=0.5, height=1)},
    **{"base": JOINT.base._replace(prompt="other"), "node": SEQUENTIAL.node.model_copy(update={"overlap_factor": 3})},
    **{"settings": JOINT.base._replace(prompt="other"), "mask": ResolvedMask("f", Image(image="other.png"), (8, 8))},
    **{"loras": (ResolvedLora("loras.0.file", "a.safetensors", 1.0, 1.0),), "prompt_syntax": "comfyui"},
    **{"controls": (ResolvedControl("controls.0", "net", ControlPicture("a.png", "crop", None), 1.0, 0.0, 1.0),)},
    "image_prompts": (
        ResolvedImagePrompt("image_prompts.0", "a.safetensors", "a.png", "image_encoder", 1.0, 0.0, 1.0),
    ),
    **{"feather": 64, "inherited": frozenset({"cfg"}), "size": (1, 1)},
    **{"sizes": ResolvedSizes(1, 1, 0, 0), "refiner": ResolvedRefiner("other", 0.5, 6.0, 2.5)},
    "window": ResolvedWindow(margin=8, full_steps=1),
}
"""Another value for each field that is neither text nor a number."""


def other_value(name: str, value: Any) -> Any:
    if name == "composition":
        return "sequential" if value == "joint" else "joint"
    if name in OTHER:
        return OTHER[name]
    return f"other {value}" if isinstance(value, str) else value + 1


def with_field(job: ResolvedJob, part: type, name: str) -> ResolvedJob:
    """The job with another value in one field: its own, of its base, of its first region, or of that one's mask."""
    if part is ResolvedJob:
        return replace(job, **{name: other_value(name, getattr(job, name))})
    first, *others = job.regions
    if part is ParticipantSettings:
        changed = first.settings._replace(**{name: other_value(name, getattr(first.settings, name))})
        first = first._replace(settings=changed)
    elif part is ResolvedWindow:
        assert first.window is not None or job is SEQUENTIAL
        window = first.window or ResolvedWindow(0, 0)
        first = first._replace(window=window._replace(**{name: other_value(name, getattr(window, name))}))
    elif part is ResolvedMask:
        first = first._replace(mask=first.mask._replace(**{name: other_value(name, getattr(first.mask, name))}))
    else:
        first = first._replace(**{name: other_value(name, getattr(first, name))})
    return replace(job, regions=(first, *others))


def names_of(part: type) -> list[str]:
    return [field.name for field in fields(part)] if is_dataclass(part) else list(part._fields)


PARTS = (ResolvedJob, ParticipantSettings, ResolvedRegion, ResolvedMask, ResolvedWindow)
FIELDS = [pytest.param(part, name, id=f"{part.__name__}.{name}") for part in PARTS for name in names_of(part)]
FOLLOWS_FROM_OTHERS = {(ResolvedMask, "size"), (ResolvedJob, "batch_size")}
"""A mask is as large as the canvas or a cell of its grid; the length of a batch index is the batch size."""


@pytest.mark.parametrize(("part", "name"), FIELDS)
def test_every_field_of_a_resolved_job_is_hashed_or_declared_inert(part: type, name: str) -> None:
    told_apart = [job_hash(with_field(job, part, name)) != job_hash(job) for job in (JOINT, SEQUENTIAL)]
    if (part, name) == (ResolvedJob, "batch_size"):
        assert told_apart == [False, True]
    else:
        assert any(told_apart) == (name not in INERT.get(part, set()) and (part, name) not in FOLLOWS_FROM_OTHERS)


def test_a_new_field_is_hashed_before_anybody_thinks_of_it() -> None:
    class NewRegion(ResolvedRegion):
        def _asdict(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride] - a field more
            return super()._asdict() | {"blur": 3}

    first, *others = JOINT.regions
    new = replace(JOINT, regions=(NewRegion(*first), *others))
    assert canonical_job(new)["regions"][0]["blur"] == 3
    assert job_hash(new) != job_hash(JOINT)


def test_a_region_has_what_it_leaves_empty_from_its_job() -> None:
    job = parse_job(
        {
            **{"prompt": "base", "negative_prompt": "fog", "sampler": "euler", "scheduler": "simple", "cfg": 3.0},
            **{"model": "folder", "base_only_steps": 4},
            "regions": [
                {"prompt": "one", "mask": LEFT},
                {"prompt": "two", "mask": LEFT, "negative_prompt": "", "sampler": "heun", "cfg": 0.0, "model": "own"},
            ],
        }
    )
    one, two = resolve(job).regions
    assert one.settings == ParticipantSettings("one", "fog", "euler", "simple", 3.0, "folder", 1.0)
    assert two.settings == ParticipantSettings("two", "", "heun", "simple", 0.0, "own", 1.0)
    assert (one.start_at_step, one.inherited) == (
        4,
        {"negative_prompt", "sampler", "scheduler", "cfg", "model", "start_at_step", "window"},
    )
    assert (two.name, two.inherited) == ("region 2", {"scheduler", "start_at_step", "window"})


def test_resolving_again_changes_nothing_that_is_hashed() -> None:
    """Equal jobs with other fields left out resolve to equal ones."""
    for recorded in RECORDED:
        job = parse_job(recorded["job"])
        assert resolve(parse_job(job.model_dump())) == resolve(job)
