"""Settings of a machine: what they refuse, what they choose for a model, and what of them is in keys and records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.tasks.machine import attention, machine_checks
from prefect_regional_diffusion.tasks.machine.settings import Settings, settings
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import record_of
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.tiny_flow_models import tiny_flux

JOB = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "sampler": "euler"}


@pytest.fixture
def machine(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Sets the machine up anew."""

    def set_up(**chosen: object) -> Settings:
        for name in Settings.model_fields:
            monkeypatch.delenv(f"REGIONAL_{name}".upper(), raising=False)
        for name, value in chosen.items():
            monkeypatch.setenv(f"REGIONAL_{name}".upper(), str(value))
        settings.cache_clear()
        loaded_parts.cache_clear()
        return settings()

    return set_up


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("attention", "efficient", r"REGIONAL_ATTENTION: 'efficient' is not allowed; allowed: auto, or a kernel that "),
        (
            "offload",
            "model",
            r"REGIONAL_OFFLOAD: 'model' is not allowed; allowed: none on the device cpu, which has no",
        ),
        ("offload", "sequential", r"REGIONAL_OFFLOAD: 'sequential' is not allowed; allowed: none on the device cpu"),
    ],
)
def test_what_the_machine_does_not_have_is_refused_before_anything_is_loaded(
    machine: Callable[..., Settings], name: str, value: str, line: str
) -> None:
    machine(**{name: value})
    with pytest.raises(BadInput, match=line) as refused:
        prepare(parse_job(JOB))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", "fp8"),
        ("offload", "disk"),
        ("attention", "sage"),
        ("compile", "true"),
        ("vae_tile", "100"),
        ("vae_tile", "500"),
        ("max_loaded_bytes", "0"),
    ],
)
def test_what_is_no_choice_is_refused_when_settings_are_read(
    machine: Callable[..., Settings], name: str, value: str
) -> None:
    with pytest.raises(BadInput, match=rf"^REGIONAL_{name.upper()}: '{value}' is not allowed; allowed: "):
        machine(**{name: value})


def test_a_machine_without_a_compiler_refuses_to_compile(
    machine: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = machine(compile="default")
    chosen.check()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match=r"REGIONAL_COMPILE: 'default' is not allowed; allowed: off on a machine "):
        chosen.check()


def test_layers_that_come_and_go_are_not_compiled() -> None:
    machine_checks.check_offload("model", "cuda", "default")
    machine_checks.check_offload("sequential", "cuda", "off")
    with pytest.raises(BadInput, match=r"REGIONAL_OFFLOAD: 'sequential' .* none or model with REGIONAL_COMPILE"):
        machine_checks.check_offload("sequential", "cuda", "default")


def test_auto_is_float32_on_a_cpu_and_on_a_gpu_what_suits_the_family(
    machine: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_flux(Path("flux"))
    flux, unet = open_folder("flux").facts, open_folder("embedded").facts
    assert [machine().torch_dtype(model) for model in (flux, unet)] == [torch.float32] * 2
    monkeypatch.setattr(Settings, "torch_device", lambda _: "cuda:1")
    assert [machine().torch_dtype(model) for model in (flux, unet)] == [torch.bfloat16, torch.float16]
    assert machine(dtype="float16").torch_dtype(flux) == torch.float16


def test_half_of_the_memory_is_kept_for_later_jobs(
    machine: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    assert machine().most_loaded_bytes() == psutil.virtual_memory().total // 2
    assert machine(max_loaded_bytes=12345).most_loaded_bytes() == 12345


def context(**fields: Any) -> RenderContext:
    run = RenderContext(prepare(parse_job(JOB | fields)), ".regional/store")
    run.remember({run.mask_key: run.masks})
    return run


def keys(run: RenderContext) -> dict[str, Any]:
    (prompt, *_) = run.sampling_run.prompts
    return {
        "prompt": run.prompt_key(prompt),
        "run": run.key,
        "start": run.start_key,
        "pictures": run.picture_numerics,
    }


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        ({"dtype": "bfloat16"}, {"prompt", "run", "start", "pictures"}),
        ({"attention": "math"}, {"prompt", "run", "start", "pictures"}),
        ({"compile": "default"}, {"run"}),
        ({"compile": "max-autotune"}, {"run"}),
        ({"vae_tile": "256"}, set()),
        ({"weights": "stored"}, set()),
        ({"max_loaded_bytes": "1"}, set()),
        ({"keep_text_encoders": "true"}, set()),
    ],
)
def test_what_changes_bits_is_in_the_keys_of_what_it_changes(
    machine: Callable[..., Settings], chosen: dict[str, str], others: set[str]
) -> None:
    machine()
    before = keys(context())
    machine(**chosen)
    after = keys(context())
    assert {name for name in before if before[name] != after[name]} == others


def test_tiles_are_in_the_keys_of_pictures_that_are_larger_than_one(machine: Callable[..., Settings]) -> None:
    machine(vae_tile=256)
    wide = context(width=512)
    assert wide.picture_numerics.endswith(" tiles 256")
    machine(vae_tile=512)
    assert "tiles" not in context(width=512).picture_numerics
    machine()
    assert context(width=512).start_key != wide.start_key


def test_a_picture_that_other_settings_have_drawn_is_not_taken_for_one_of_these(
    machine: Callable[..., Settings],
) -> None:
    machine()
    first = asyncio.run(draw_job(parse_job(JOB)))
    assert first["steps_computed"] == 1
    assert first["numerics"]["pictures"].startswith("cpu torch.float32 torch ")
    drawn = record_of(Store(".regional/store"), first["job_hash"])
    assert drawn is not None
    assert drawn.numerics == first["numerics"]["pictures"]
    machine(attention="math")
    second = asyncio.run(draw_job(parse_job(JOB)))
    assert second["steps_computed"] == 1
    assert second["numerics"]["latents"] == first["numerics"]["latents"] + " attention math"


def test_the_kernel_of_attention_is_the_one_that_is_set(machine: Callable[..., Settings]) -> None:
    cuda = torch.backends.cuda
    before = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled())
    machine(attention="math")
    try:
        asyncio.run(draw_job(parse_job(JOB)))
        assert cuda.math_sdp_enabled()
        assert (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()) == (False,) * 3
        attention.use_attention("flash")
        assert cuda.flash_sdp_enabled()
        assert cuda.math_sdp_enabled(), "for what the other kernel cannot do"
    finally:
        cuda.enable_flash_sdp(before[0])
        cuda.enable_mem_efficient_sdp(before[1])
        cuda.enable_cudnn_sdp(before[2])
