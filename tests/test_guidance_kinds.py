"""How a model is guided is its family's: two rows, a scale that it is told, or none. What it cannot do is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.cache_keys import Segment, segment_keys
from prefect_regional_diffusion.sampling_core.engine.guidance import (
    ClassifierFreeGuidance,
    EmbeddedGuidance,
    PromptKey,
    Request,
)
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob, resolve
from prefect_regional_diffusion.sampling_core.models.conditioning import GUIDANCE, Conditioning
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.planning.model_fit import fit_to_models, guidance_of
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, beta_levels
from prefect_regional_diffusion.sampling_core.solvers import DenoiseRequest
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.toy_family import PIPELINE, Toy, open_toy, toy_folder

RIGHT = {"prompt": "right", "mask": {"x": 0.5, "y": 0, "width": 0.5, "height": 1}}
PLAIN = open_folder("embedded").facts


class Scales:
    """Answers each row with the scale that it is told."""

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        return conditioning[GUIDANCE][:, None, None, None].expand_as(x).clone()


def test_a_told_scale_belongs_to_its_row() -> None:
    """Two regions with one prompt and other scales are two rows of one forward; equal ones are one row."""
    x, encoded = torch.zeros(1, 4, 2, 2), Conditioning({"prompt_embeds": torch.ones(1, 3, 2)})
    asked = [
        Request(DenoiseRequest(x, Level(1.0, 1.0)), EmbeddedGuidance(scale, "a", "flow")) for scale in (3.5, 2.0, 3.5)
    ]
    answers, count = evaluate(asked, EvaluationContext({"flow": Scales()}, {PromptKey("flow", "a"): encoded}))
    assert [float(answer.denoised.mean()) for answer in answers] == [3.5, 2.0, 3.5]
    assert all(answer.unconditional is None for answer in answers)
    assert count == Count(2, 1, shared=1)


def test_states_are_told_apart_by_the_scale_and_the_weights() -> None:
    def name(scale: float, weights: str = "1") -> str:
        guidance = EmbeddedGuidance(scale, "a", "flow", SizeConditioning(Canvas(64, 64), Canvas(64, 64)))
        return segment_keys([Segment(0, guidance)], None, {"flow": ModelKey(weights * 64)})[0].name

    assert name(3.5) == name(3.5)
    assert len({name(3.5), name(3.0), name(3.5, "2")}) == 3


def fitted(facts: Facts, **fields: Any) -> ResolvedJob:
    return fit_to_models(resolve(parse_job({"prompt": "base"} | fields)), {"embedded": facts})


def test_models_of_two_rows_are_as_they_were() -> None:
    job = resolve(parse_job({"prompt": "base", "cfg": 4.0, "regions": [RIGHT]}))
    assert fit_to_models(job, {"embedded": PLAIN}) == job


def test_a_model_that_is_told_its_scale_has_one_row() -> None:
    facts = replace(PLAIN, guidance="embedded")
    job = fitted(facts, cfg=3.5, regions=[RIGHT | {"cfg": 2.0}])
    assert [guidance_of(settings, job, ()) for settings in job.participants] == [
        EmbeddedGuidance(3.5, "base", "embedded"),
        EmbeddedGuidance(2.0, "right", "embedded"),
    ]
    assert fit_to_models(job, {"embedded": facts}) == job


def test_an_empty_negative_prompt_may_be_none_at_all() -> None:
    facts = replace(PLAIN, empty_negative="none", size_conditioned=True)
    job = fitted(facts, cfg=4.0, regions=[RIGHT | {"negative_prompt": "fog"}])
    base, region = (guidance_of(settings, job, ()) for settings in job.participants)
    assert base == ClassifierFreeGuidance(
        4.0, "base", None, model="embedded", sizes=SizeConditioning(Canvas(128, 128), Canvas(128, 128))
    )
    assert region.prompts == ("fog", "right")
    assert guidance_of(fitted(facts, cfg=1.0).base, job, ()).prompts == ("base",)
    assert job_hash(job) != job_hash(fitted(PLAIN, cfg=4.0, regions=[RIGHT | {"negative_prompt": "fog"}]))


@pytest.mark.parametrize(
    ("guidance", "fields", "told"),
    [
        ("embedded", {"negative_prompt": "fog"}, r"^negative_prompt: 'fog' .*left out: Toy takes no negative prompt"),
        ("embedded", {"sampler": "euler_cfg_pp"}, r"^sampler: .*Toy has one prediction"),
        ("embedded", {"regions": [RIGHT | {"negative_prompt": "x"}]}, r"^regions\.0\.negative_prompt: 'x'"),
        ("none", {"negative_prompt": "fog"}, r"^negative_prompt: 'fog'"),
        ("none", {"cfg": 2.0}, r"^cfg: 2\.0 .*allowed: 1: Toy has no guidance"),
        ("none", {"regions": [RIGHT | {"cfg": 3.0}]}, r"^regions\.0\.cfg: 3\.0"),
        ("none", {"cfg": 2.0, "regions": [RIGHT]}, r"^cfg: 2\.0"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_its_files_are_read(
    guidance: Any, fields: dict[str, Any], told: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_folder(workdir / "toy")
    facts = Toy.facts.fget
    assert facts is not None
    monkeypatch.setattr(Toy, "facts", property(lambda toy: replace(facts(toy), guidance=guidance)))
    monkeypatch.setattr(Toy, "fingerprint", lambda _: pytest.fail("its files were read"))
    monkeypatch.setitem(FAMILIES, PIPELINE, open_toy)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=told):
        prepare(
            parse_job(
                {"model": "toy", "prompt": "base", "cfg": 1.0, "sampler": "euler", "scheduler": "simple"} | fields
            )
        )


def test_levels_without_signal_at_the_end() -> None:
    """All but the last are diffusers' own; that one is infinite there, and 4519 here."""
    from diffusers.schedulers.scheduling_euler_discrete import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    levels = beta_levels("v_prediction", zero_terminal_snr=True)
    expected = ((1 - kept) / kept).sqrt()
    torch.testing.assert_close(torch.tensor(levels.sigmas[:-1]), expected[:-1].float(), rtol=1e-4, atol=0.0)
    assert levels.largest == pytest.approx(4518.7, abs=0.1)
    assert levels.smallest == pytest.approx(beta_levels("v_prediction").smallest)
    assert levels.timestep_of(levels.largest) == 999
